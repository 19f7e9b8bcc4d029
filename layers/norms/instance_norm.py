"""InstanceNorm: one mean and variance per sample and feature, over its positions.

    y = g (x - mean) / sqrt(var + eps) + b      over T of [B, T, D] or H, W of [N, H, W, C]

Statistics over T see the future, so this is no norm for causal models. A sample of
one position becomes b.

Reference: Ulyanov, Vedaldi and Lempitsky, "Instance Normalization", 2016.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import moments


def instance_norm(x, scale_D, bias_D, mask=None, eps=1e-5):
  """Normalises every feature of every sample over its real positions; returns x's dtype."""
  mean, var = moments.mean_and_variance(x, tuple(range(1, x.ndim - 1)), mask)
  y = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(var + eps)
  return (moments.features(scale_D, x) * y + moments.features(bias_D, x)).astype(x.dtype)


class InstanceNorm(nn.Module):
  """The norm with its gain and bias.

  Attributes:
    eps: added to the variance.
  """

  eps: float = 1e-5
  mixes_tokens = True

  @nn.compact
  def __call__(self, x, mask=None):
    moments.check_mask(x, mask)
    scale_D = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias_D = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    return instance_norm(x, scale_D, bias_D, mask, self.eps)
