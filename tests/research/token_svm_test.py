"""The max-margin problem by its optimality conditions, and attention that grows towards it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.in_context import attention_svm
from research import token_svm
from research.tasks.token_selection import TokenSelection

descend = jax.jit(attention_svm.descend, static_argnames="steps")
slope = jax.jit(jax.grad(attention_svm.loss))


@functools.cache
def _data(seed, n=3, t=4, d=6):
  return attention_svm.draw(jax.random.key(seed), n, t, d)


def _rows(data, chosen):
  return token_svm.constraints(data.x_NTD, data.z_ND, chosen)


def test_the_solution_keeps_every_margin_and_is_made_of_the_active_ones():
  rows = _rows(_data(0), [0, 2, 1])
  w = token_svm.max_margin(rows)
  margins = rows @ w
  assert margins.min() > 1 - 1e-9
  active = rows[margins < 1 + 1e-7]
  # w = sum of multipliers times active rows, all of them at least 0: stationarity of the Lagrangian.
  multipliers, *_ = np.linalg.lstsq(active.T, w, rcond=None)
  np.testing.assert_allclose(active.T @ multipliers, w, atol=1e-8)
  assert np.all(multipliers > -1e-8)


def test_tokens_that_cannot_be_separated_are_refused():
  rows = np.array([[1.0, 0.0], [-1.0, 0.0]])
  with pytest.raises(ValueError, match="2 constraints in 2 dimensions contradict"):
    token_svm.max_margin(rows)


def test_trained_attention_points_to_the_max_margin_of_the_tokens_it_selected():
  data = _data(1)
  correlations = []
  for steps in (100, 1000):
    weight, losses = descend(jnp.zeros((6, 6)), data, steps=steps)
    chosen = attention_svm.selected(weight, data)
    correlations.append(token_svm.correlation(weight, token_svm.max_margin(_rows(data, chosen))))
  assert correlations[1] > 0.98 and correlations[1] > correlations[0]
  assert losses[-1] < losses[0]


def test_larger_weights_sharpen_the_same_choice():
  data, weight = _data(2), jax.random.normal(jax.random.key(3), (6, 6))
  assert np.array_equal(attention_svm.selected(weight, data), attention_svm.selected(50 * weight, data))
  sharp = np.asarray(jax.nn.softmax(attention_svm.scores(5000 * weight, data), axis=-1))
  assert sharp.max(-1).min() > 0.99


def test_a_gradient_has_at_most_the_rank_of_the_prompts():
  values = np.linalg.svd(slope(np.random.default_rng(4).standard_normal((6, 6), np.float32), _data(5)))[1]
  assert values[2] > 1e-6 * values[0] > values[3]


def test_labels_come_from_coins_and_everything_else_from_the_sphere():
  data = attention_svm.draw(jax.random.key(6), 400, 2, 3)
  np.testing.assert_allclose(np.linalg.norm(data.x_NTD, axis=-1), 1, rtol=1e-5)
  assert set(np.unique(data.y_N)) == {-1, 1} and abs(np.mean(data.y_N)) < 0.2


@pytest.mark.parametrize("make, match", [
    (lambda: attention_svm.draw(jax.random.key(0), 3, 1, 4), "t=1 tokens at least 2"),
    (lambda: _rows(_data(0), [0, 9, 1]), r"chosen=\[0, 9, 1\] must name one of 4 tokens"),
    (lambda: TokenSelection(choices=1), "choices=1 must be at least 2"),
    (lambda: TokenSelection(descent=0), "descent=0 must be at least 1"),
])
def test_what_leaves_no_choice_is_refused_with_the_numbers(make, match):
  with pytest.raises(ValueError, match=match):
    make()
