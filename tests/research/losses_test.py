"""Sums and weights of the losses against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from research import losses

cross_entropy = jax.jit(losses.cross_entropy)
accuracy = jax.jit(losses.accuracy)


def _inputs(B=3, T=5, V=7, scale=4.0):
  draw = np.random.default_rng(0)
  logits = (scale * draw.standard_normal((B, T, V))).astype(np.float32)
  labels = draw.integers(0, V, (B, T)).astype(np.int32)
  return logits, labels, draw.integers(0, 3, (B, T)).astype(np.float32)


def test_cross_entropy_is_minus_log_probability():
  logits, labels, weights = _inputs()
  exact = logits.astype(np.float64)
  p = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
  want = -(np.log(np.take_along_axis(p, labels[..., None], -1)[..., 0]) * weights).sum()
  total, weight = cross_entropy(logits, labels, weights)
  np.testing.assert_allclose(total, want, rtol=1e-6)
  assert weight == weights.sum()


def test_equal_scores_cost_the_log_of_the_vocabulary():
  total, weight = cross_entropy(np.zeros((2, 256)), np.array([3, 9]), np.ones(2))
  np.testing.assert_allclose(total / weight, np.log(256), rtol=1e-6)


def test_sums_of_parts_are_the_sum_of_the_whole():
  whole = cross_entropy(*_inputs())
  parts = [cross_entropy(*[x[b:b + 1] for x in _inputs()]) for b in range(3)]
  np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-6)


def test_weight_zero_takes_an_example_out_of_value_and_gradient():
  logits, labels, _ = _inputs()
  weights = np.ones((3, 5), np.float32)
  weights[1] = 0.0
  got = jax.jit(jax.grad(lambda x: losses.cross_entropy(x, labels, weights)[0]))(logits)
  assert np.all(got[1] == 0) and np.all(np.abs(got[0]).sum(-1) > 0)
  np.testing.assert_allclose(cross_entropy(logits, labels, weights),
                             cross_entropy(logits[::2], labels[::2], weights[::2]), rtol=1e-6)


def test_large_scores_stay_finite_and_bfloat16_is_summed_in_float32():
  total, weight = cross_entropy(np.array([[1e4, -1e4]], np.float32), np.array([1]), np.ones(1))
  assert total == 2e4 and weight == 1
  # In bfloat16 the count would stop at 256.
  ones = jnp.ones((1000,), jnp.bfloat16)
  logits = jnp.tile(jnp.array([0, 1], jnp.bfloat16), (1000, 1))
  total, weight = accuracy(logits, np.ones(1000, np.int32), ones)
  assert total == weight == 1000 and total.dtype == jnp.float32


def test_accuracy_counts_weighted_hits():
  logits, labels, weights = _inputs()
  hits, weight = accuracy(logits, labels, weights)
  np.testing.assert_allclose(hits, ((logits.argmax(-1) == labels) * weights).sum())
  assert weight == weights.sum()
