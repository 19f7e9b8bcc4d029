"""Identities between the measures of likeness, and the population flow against its limit."""

import jax
import numpy as np
import pytest

from layers.in_context import closed_forms, population, probes

P, N, D = 6, 9, 4


def _normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape)


def test_differences_of_a_learner_to_itself_are_zero_and_symmetric():
  f, g = _normal(0, 2, P)
  assert probes.squared_difference(f, f) == probes.alignment(f, f) == 0.0
  assert probes.squared_difference(f, g) == probes.squared_difference(g, f) > probes.alignment(f, g) ** 2


def test_squared_difference_is_weight_difference_for_linear_learners():
  w, v = _normal(1, 2, 1, D)
  x = _normal(2, 1, 400_000, D)
  want = probes.weight_difference(w, v)
  np.testing.assert_allclose(probes.squared_difference(x[0] @ w[0], x[0] @ v[0]), want, rtol=0.02)


def test_implied_weights_of_a_linear_learner_are_its_weights():
  x, w = _normal(3, P, N, D), _normal(4, P, D)
  found, explained = probes.implied_weights(x, np.einsum("pnd,pd->pn", x, w))
  np.testing.assert_allclose(found, w, rtol=1e-10)
  np.testing.assert_allclose(explained, 1.0)
  assert np.all(probes.implied_weights(x, np.einsum("pnd,pd->pn", x, w) ** 2)[1] < 0.999)


def test_cosine_forgets_lengths_and_distance_does_not():
  a = _normal(5, P, N)
  assert probes.cosine(a, 3 * a) == pytest.approx(1.0) and probes.cosine(a, -a) == pytest.approx(-1.0)
  np.testing.assert_allclose(probes.distance(a, 3 * a), 2 * np.mean(np.linalg.norm(a, axis=1)))


def test_sensitivity_is_the_weight_of_a_linear_answer():
  tokens, w = np.float32(_normal(6, P, 3, D + 1)), np.float32(_normal(7, D))
  predict = lambda t: t[:, -1, :-1] @ w + t[:, 0, -1]
  found = jax.jit(lambda t: probes.sensitivity(predict, t))(tokens)
  np.testing.assert_allclose(found, np.broadcast_to(w, (P, D)), rtol=1e-6)


def test_the_best_match_is_the_algorithm_itself():
  residuals = _normal(8, 5, P, N)
  index, alike = probes.best_match(2.0 * residuals[3], residuals)
  assert index == 3 and alike[3] == pytest.approx(1.0)


def test_layers_are_compared_up_to_a_factor_that_moves_between_their_products():
  a, b, c = _normal(9, 3, D, D)
  assert probes.product_distance((3 * a, b / 3), (a, b)) < 1e-7
  want = np.linalg.norm(np.kron(a, b) - np.kron(c, b)) / np.linalg.norm(np.kron(c, b))
  assert probes.product_distance((a, b), (c, b)) == pytest.approx(want)


@pytest.mark.parametrize("sigma", [np.eye(3), np.diag([1.6, 0.9, 0.5])], ids=["isotropic", "skewed"])
def test_the_population_flow_reaches_both_factors_and_keeps_the_balance(sigma):
  s, block = population.start(3, 0.3)
  s, block = population.descend(s, block, sigma, 12, rate=0.02, steps=6000)
  scalar, want = closed_forms.zhang_limit(sigma, 12)
  assert abs(s - scalar) < 5e-3 * scalar and np.linalg.norm(block - want) < 5e-3 * np.linalg.norm(want)
  assert abs(s**2 - np.sum(block**2)) < 1e-2
  np.testing.assert_allclose(s * block, closed_forms.best_preconditioner(sigma, 12), atol=1e-6)


def test_a_layer_that_copies_what_stands_behind_reaches_there_and_nowhere_else():
  tokens = np.float32(_normal(12, 2, 7, D))
  own, following, others = probes.reach(lambda e: 3 * e + jax.numpy.roll(e, -1, axis=1), tokens)
  np.testing.assert_allclose([own, following, others], [3 * D**0.5, D**0.5, 0.0], rtol=1e-6)
  with pytest.raises(ValueError, match="T=4 tokens must be odd"):
    probes.reach(lambda e: e, tokens[:, :4])


def test_what_diverges_or_cannot_be_fitted_is_refused():
  with pytest.raises(ValueError, match="rate=9 is too large"):
    population.descend(*population.start(3, 0.3), np.eye(3), 5, rate=9, steps=50)
  with pytest.raises(ValueError, match="M=3 inputs must be at least d=4"):
    probes.implied_weights(_normal(10, P, 3, D), _normal(11, P, 3))
