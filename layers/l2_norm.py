"""Vectors of length one: what the delta rule asks of its keys.

    y = x / sqrt(sum_K(x^2) + eps)

With |k| <= 1 and 0 <= beta <= 2 no eigenvalue of I - beta k k^T leaves [-1, 1].

Reference: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over
Sequence Length", 2024.
"""

import jax
import jax.numpy as jnp

from layers.broadcast_product import broadcast_product


def l2_norm(x, eps=1e-6):
  """Normalises the last axis with a float32 sum; returns x's dtype."""
  x32 = x.astype(jnp.float32)
  # eps inside the root: a zero vector stays zero and its gradient finite.
  inverse = jax.lax.rsqrt(jnp.sum(x32 * x32, axis=-1, keepdims=True) + eps)
  return broadcast_product(x32, inverse).astype(x.dtype)
