"""GroupNorm: one mean and variance per sample and group of features, over all its positions.

    y = g (x - mean) / sqrt(var + eps) + b      over (positions, D / groups)

Positions are T of [B, T, D], or H and W of [N, H, W, C]. Statistics over T see the
future, so this is no norm for causal models; groups = 1 is LayerNorm over a whole
sample.

Reference: Wu and He, "Group Normalization", 2018.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import moments


def group_norm(x, scale_D, bias_D, groups, mask=None, eps=1e-5):
  """Normalises every sample by groups of features, of real positions only; returns x's dtype."""
  space = tuple(range(1, x.ndim - 1))
  centred = x.astype(jnp.float32) - moments.over_groups(moments.mean(x, space, mask), groups)
  var = moments.over_groups(moments.mean(jnp.square(centred), space, mask), groups)
  y = centred * jax.lax.rsqrt(var + eps)
  return (moments.features(scale_D, x) * y + moments.features(bias_D, x)).astype(x.dtype)


class GroupNorm(nn.Module):
  """The norm with its gain and bias.

  Attributes:
    groups: number of groups of features, a divisor of the width.
    eps: added to the variance.
  """

  groups: int = 32
  eps: float = 1e-5
  mixes_tokens = True

  @nn.compact
  def __call__(self, x, mask=None):
    moments.check_mask(x, mask)
    if not self.groups or x.shape[-1] % self.groups:
      raise ValueError(f"groups={self.groups} must divide the {x.shape[-1]} features.")
    scale_D = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias_D = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    return group_norm(x, scale_D, bias_D, self.groups, mask, self.eps)


TINY = dict(groups=2)
