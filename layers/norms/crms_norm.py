"""CRMSNorm: the RMSNorm of a vector whose features sum to 0, told without its last one.

A zero-sum vector of n + 1 features is stored as its first n, u; the last is
-sum(u). Its root mean square, and so its norm, is a function of u alone:

    y = u / sqrt((sum_n u^2 + (sum_n u)^2) / (n + 1) + eps)

There is no gain: the maps that read y carry it, in their raw or converted form.

Reference: Jiang, Gu, Zhu and Pan, "Pre-RMSNorm and Pre-CRMSNorm Transformers:
Equivalent and Efficient Pre-LN Transformers", 2023.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def crms_norm(u, eps=1e-6):
  """Normalises the last axis with float32 statistics; returns u's dtype."""
  u32 = u.astype(jnp.float32)
  whole = jnp.sum(u32 * u32, axis=-1, keepdims=True) + jnp.sum(u32, axis=-1, keepdims=True) ** 2
  return (u32 * jax.lax.rsqrt(whole / (u.shape[-1] + 1) + eps)).astype(u.dtype)


class CRMSNorm(nn.Module):
  """The norm; it has no parameters.

  Attributes:
    eps: added to the mean square; the same as in the norm that it replaces.
  """

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x, mask=None):
    del mask  # every position has its own statistics
    return crms_norm(x, self.eps)
