"""Sums with ones are sums, to the digits of float32, and a broadcast product has the slopes of x * w."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import sums
from layers.broadcast_product import broadcast_product


def _draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(3,), (1, 5), (7, 1), (2, 3, 4), (2, 3, 4, 33), (300, 2)])
def test_sums_are_those_of_float64(shape):
  x = _draw(0, *shape) + 3
  exact = x.astype(np.float64)
  np.testing.assert_allclose(jax.jit(sums.over_features)(x), exact.sum(-1), rtol=2e-6)
  np.testing.assert_allclose(jax.jit(sums.over_rows)(x), exact.reshape(-1, shape[-1]).sum(0), rtol=2e-6)


def test_one_infinite_entry_reaches_its_own_sums_only():
  x = _draw(1, 4, 3)
  x[1, 2] = np.inf
  assert np.isinf(sums.over_features(x)).tolist() == [False, True, False, False]
  assert np.isinf(sums.over_rows(x)).tolist() == [False, False, True]


@pytest.mark.parametrize("w_shape", [
    (1, 1, 5), (4, 3, 1), (4, 3, 5), (1, 1, 1), (4, 1, 1), (1, 3, 5), (4, 1, 5)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_slopes_of_both_orders_are_those_of_the_product(w_shape, dtype):
  x, w = jnp.asarray(_draw(2, 4, 3, 5), dtype), jnp.asarray(_draw(3, *w_shape), dtype)
  def all_of(product):
    loss = lambda x, w: jnp.sum(jnp.sin(product(x, w).astype(jnp.float32)))
    first = jax.grad(loss, argnums=(0, 1))
    second = jax.grad(lambda x, w: sum(jnp.sum(jnp.cos(g.astype(jnp.float32))) for g in first(x, w)), argnums=(0, 1))
    return jax.jit(lambda x, w: (product(x, w), first(x, w), second(x, w)))(x, w)
  tolerance = 1e-5 if dtype == jnp.float32 else 0.05
  near = lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=tolerance, atol=2 * tolerance)
  jax.tree.map(near, all_of(broadcast_product), all_of(lambda x, w: x * w))


def test_a_vmapped_gain_is_each_by_itself():
  x, w = _draw(4, 3, 6, 5), _draw(5, 3, 1, 5)
  slope = jax.grad(lambda x, w: jnp.sum(jnp.sin(broadcast_product(x, w))), argnums=(0, 1))
  together, alone = jax.jit(jax.vmap(slope))(x, w), jax.jit(slope)
  for n in range(3):
    for mine, own in zip(together, alone(x[n], w[n])):
      np.testing.assert_allclose(mine[n], own, rtol=1e-5, atol=1e-6)
