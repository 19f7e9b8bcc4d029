"""Sums over the features of every row, or over all rows.

On a CPU they are products with ones, elsewhere sums. jax 0.10.2 sums a product of two arrays ten times
slower than one array: measured 2026-11-21 on one AMD EPYC core, 2048 rows of 128 features, over features
1.0 ms and over rows 1.8, with ones 0.1. With jax 0.12 ones are as fast or up to twice as fast.
"""

import jax
import jax.numpy as jnp

# Dims: D features; all other axes are rows.


def over_features(x):
  """Returns the sums of [..., D] over D, in x's dtype."""
  ones = lambda x: _dot(x, jnp.ones(x.shape[-1:], x.dtype))
  return jax.lax.platform_dependent(x, cpu=ones, default=lambda x: jnp.sum(x, axis=-1))


def over_rows(x):
  """Returns the sum of [..., D] over all axes but the last, in x's dtype."""
  ones = lambda x_ND: _dot(jnp.ones(x_ND.shape[:1], x_ND.dtype), x_ND)
  return jax.lax.platform_dependent(x.reshape(-1, x.shape[-1]), cpu=ones, default=lambda x_ND: jnp.sum(x_ND, axis=0))


def _dot(x, y):
  return jnp.dot(x, y, precision=jax.lax.Precision.HIGHEST)
