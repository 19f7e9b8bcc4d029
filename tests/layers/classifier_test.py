"""The classifier pools what its stack makes of a row: what it sees, and what it cannot."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.classifier import Classifier
from tests.layers import toy

B, T, F, D, CLASSES = 2, 5, 3, 6, 4
_bent = functools.partial(toy.PointwiseStack, function="tanh")


def _tokens(seed):
  return np.random.default_rng(seed).standard_normal((B, T, F), np.float32)


@functools.cache
def _model(max_positions):
  """Returns (drawn parameters, logits of rows, gradient of the summed logits 0 in the rows)."""
  model = Classifier(CLASSES, D, _bent, max_positions=max_positions)
  params = toy.parameters(model, 0, _tokens(0), spread=0.7)
  logits = lambda params, x: model.apply({"params": params}, x)[0]
  grad = jax.grad(lambda x, params: jnp.sum(logits(params, x)[:, 0]))
  run, slope = jax.jit(logits), jax.jit(grad)
  return params, lambda x: run(params, x), lambda x: slope(x, params)


@pytest.mark.parametrize("max_positions", [0, T + 2])
def test_logits_are_the_head_of_the_mean_token(max_positions):
  params, run, _ = _model(max_positions)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  h = _tokens(1) @ p["embedding"]["kernel"] + p["embedding"]["bias"]
  if max_positions:
    h += p["positions"]["embedding"][:T]
  want = np.tanh(3 * h).mean(1) @ p["head"]["kernel"] + p["head"]["bias"]
  np.testing.assert_allclose(run(_tokens(1)), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_positions, matters", [(0, False), (T, True)])
def test_order_matters_through_positions_and_not_through_the_mean(max_positions, matters):
  _, run, _ = _model(max_positions)
  moved = np.abs(run(_tokens(2)[:, ::-1]) - run(_tokens(2))).max()
  assert (moved > 1e-2) if matters else (moved < 1e-5)


def test_every_feature_of_every_token_counts():
  dx = np.asarray(_model(0)[2](_tokens(3)))
  assert np.all(dx != 0)


def test_rows_of_a_batch_do_not_meet():
  x = _tokens(4)
  other = x.copy()
  other[1] *= -2
  _, run, _ = _model(0)
  changed = np.any(np.asarray(run(x) != run(other)), axis=1)
  assert changed.tolist() == [False, True]


def test_logits_are_float32_whatever_the_stream():
  model = Classifier(CLASSES, D, _bent, max_positions=T, dtype=jnp.bfloat16)
  params = jax.eval_shape(model.init, jax.random.key(0), _tokens(5))
  logits, states = jax.eval_shape(model.apply, params, _tokens(5))
  assert (logits.shape, logits.dtype, states) == ((B, CLASSES), jnp.float32, None)


@pytest.mark.parametrize("given", [dict(states=()), dict(segment_ids=np.zeros((B, T), int))])
def test_parts_of_a_row_are_refused(given):
  model = Classifier(CLASSES, D, _bent)
  with pytest.raises(ValueError, match="takes neither states nor segment_ids"):
    jax.eval_shape(functools.partial(model.init, **given), jax.random.key(0), _tokens(6))


def test_a_row_longer_than_its_positions_is_refused_with_the_numbers():
  model = Classifier(CLASSES, D, _bent, max_positions=T - 1)
  with pytest.raises(ValueError, match=r"max_positions=4 must cover the row of 5 tokens"):
    jax.eval_shape(model.init, jax.random.key(0), _tokens(7))
