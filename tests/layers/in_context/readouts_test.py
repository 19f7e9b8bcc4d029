"""Closed-form read-outs against their normal equations, and algorithms at every position against whole prompts."""

import numpy as np
import pytest

from layers.in_context import by_position, filters, oracles, readouts


def _normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape)


def test_a_linear_target_is_read_exactly_on_other_samples():
  h, w = _normal(0, 60, 5), _normal(1, 5, 2)
  target = h @ w + 3.0
  found = readouts.fit(h[:30], target[:30], 1e-12)
  np.testing.assert_allclose(readouts.apply(found, h[30:]), target[30:], atol=1e-8)
  assert readouts.explained(h, target) > 1 - 1e-9


def test_a_read_out_is_ridge_with_a_free_constant():
  h, target = _normal(2, 40, 3) + 2.0, _normal(3, 40, 1)
  strength = 0.3
  w, c = readouts.fit(h, target, strength)
  middle = h - h.mean(0)
  penalty = strength * np.sum(middle**2) / 3
  rest = target - h @ w - c
  np.testing.assert_allclose(h.T @ rest, penalty * w, atol=1e-9)
  np.testing.assert_allclose(rest.sum(), 0, atol=1e-10)


def test_nothing_is_explained_of_what_is_independent():
  assert readouts.explained(_normal(4, 400, 4), _normal(5, 400, 1)) < 0.05


def test_a_position_knows_the_pairs_before_it_and_nothing_else():
  x, y = _normal(6, 3, 6, 2), _normal(7, 3, 6)
  whole = by_position.answers(x, y, 0.5)
  changed = y.copy()
  changed[:, 4] += 9.0
  other = by_position.answers(x, changed, 0.5)
  for name in whole:
    np.testing.assert_array_equal(whole[name][..., :5], other[name][..., :5])
    assert np.all(whole[name][..., 5] != other[name][..., 5]) or name in ("neighbours", "newton", "gd")
    assert not np.any(whole[name][..., 0])
  w = by_position.weights(x[:, :5], y[:, :5], 0.5)["ridge"]
  np.testing.assert_allclose(whole["ridge"][:, 5], np.sum(w * x[:, 5], 1))


def test_steps_are_those_of_the_filters_and_their_limits():
  x, y = _normal(8, 4, 7, 3), _normal(9, 4, 7)
  w = by_position.weights(x, y, 0.25)
  found = oracles.decompose(x, y)
  for at, k in enumerate(by_position.GRADIENT[:5]):
    want = oracles.weights(found, filters.gradient_descent(found.l_PD, 7, [7 * by_position.RATE] * k))
    np.testing.assert_allclose(w["gd"][at], want, rtol=1e-9)
  exact = [np.linalg.lstsq(a, b, rcond=None)[0] for a, b in zip(x, y)]
  np.testing.assert_allclose(w["least_squares"], exact, rtol=1e-8)
  assert "ridge" not in by_position.weights(x, y)


@pytest.mark.parametrize("ask, match", [
    (lambda: readouts.fit(np.ones((3, 3)), np.ones((3, 1))), "must be as many, and more than F=3"),
    (lambda: readouts.fit(np.ones((9, 3)), np.ones((8, 1))), "M=9 samples with 8 targets"),
    (lambda: readouts.fit(np.ones((9, 3)), np.ones((9, 1)), 0.0), "strength=0.0 must be above 0"),
    (lambda: by_position.answers(np.ones((2, 1, 3)), np.ones((2, 1))), "N=1 points must be at least 2"),
])
def test_too_little_to_fit_is_refused_with_the_numbers(ask, match):
  with pytest.raises(ValueError, match=match):
    ask()
