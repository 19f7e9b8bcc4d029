"""LayerNorm: subtract the mean of the features, divide by their deviation.

    y = g (x - mean_D(x)) / sqrt(var_D(x) + eps) + b

with the biased variance, g = 1 and b = 0 at first.

Reference: Ba, Kiros and Hinton, "Layer Normalization", 2016.
"""

import flax.linen as nn
import jax.numpy as jnp

from layers import moments
from layers.norms.rms_norm import rms_norm


def layer_norm(x, scale_D=None, bias_D=None, eps=1e-6):
  """Normalises the last axis with float32 statistics; returns x's dtype."""
  x32 = x.astype(jnp.float32)
  # Centre first: mean(x^2) - mean(x)^2 cancels when the mean is large.
  x32 -= jnp.mean(x32, axis=-1, keepdims=True)
  y = rms_norm(x32, scale_D, eps)
  if bias_D is not None:
    y += moments.features(bias_D, x)
  return y.astype(x.dtype)


class LayerNorm(nn.Module):
  """The norm with its gain and bias.

  Attributes:
    eps: added to the variance.
    gain, bias: whether there is a learned gain, a learned bias.
  """

  eps: float = 1e-6
  gain: bool = True
  bias: bool = True

  @nn.compact
  def __call__(self, x, mask=None):
    del mask  # every position has its own statistics
    scale_D = self.param("scale", nn.initializers.ones, x.shape[-1:]) if self.gain else None
    bias_D = self.param("bias", nn.initializers.zeros, x.shape[-1:]) if self.bias else None
    return layer_norm(x, scale_D, bias_D, self.eps)


class ShortcutLayerNorm(nn.Module):
  """LayerNorm(x) + a x, a one learned number: the control for norms that have such a shortcut (prepbn.py).

  Attributes:
    eps: added to the variance.
    shortcut_init: first a.
  """

  eps: float = 1e-6
  shortcut_init: float = 1.0

  @nn.compact
  def __call__(self, x, mask=None):
    del mask  # every position has its own statistics
    scale_D = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias_D = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    shortcut = self.param("shortcut", nn.initializers.constant(self.shortcut_init), ())
    y = layer_norm(x.astype(jnp.float32), scale_D, bias_D, self.eps)
    return (y + shortcut * x.astype(jnp.float32)).astype(x.dtype)
