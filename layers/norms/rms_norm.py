"""RMSNorm: divide by the root mean square of the features, then scale.

    y = g x / sqrt(mean_D(x^2) + eps)        g = 1 at first, one per feature

Reference: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import moments
from layers.broadcast_product import broadcast_product


def rms_norm(x, scale_D=None, eps=1e-6):
  """Normalises the last axis with float32 statistics; returns x's dtype."""
  x32 = x.astype(jnp.float32)
  y = broadcast_product(x32, jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps))
  if scale_D is not None:
    y = broadcast_product(y, moments.features(scale_D, x))
  return y.astype(x.dtype)


class RMSNorm(nn.Module):
  """The norm with its gain.

  Attributes:
    eps: added to the mean square.
    gain: whether there is a learned gain.
  """

  eps: float = 1e-6
  gain: bool = True

  @nn.compact
  def __call__(self, x, mask=None):
    del mask  # every position has its own statistics
    scale_D = self.param("scale", nn.initializers.ones, x.shape[-1:]) if self.gain else None
    return rms_norm(x, scale_D, self.eps)
