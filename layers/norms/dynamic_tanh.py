"""Dynamic Tanh: no statistics at all, a squashing with one learned steepness.

    y = g tanh(a x) + b          a one number, 0.5 at first

It restores no scale: a stream that is small stays small, so the embedding needs a
scale of its own (the published language models learn one, sqrt(D) at first; here
config.model.embedding_std = 1 comes near). With 0.1 the layer trains badly.

Reference: Zhu, Chen, He, LeCun and Liu, "Transformers without Normalization", 2025;
with target variance rescaling (research/rescale.py) in "A Refined Analysis of
Massive Activations in LLMs", 2025.
"""

import flax.linen as nn
import jax.numpy as jnp


def dynamic_tanh(x, alpha, scale_D, bias_D):
  """Returns g tanh(a x) + b, computed in float32, in x's dtype."""
  features = (1,) * (x.ndim - 1) + x.shape[-1:]
  y = jnp.tanh(alpha * x.astype(jnp.float32))
  return (scale_D.reshape(features) * y + bias_D.reshape(features)).astype(x.dtype)


class DynamicTanh(nn.Module):
  """The layer in place of a norm.

  Attributes:
    alpha_init: first steepness.
  """

  alpha_init: float = 0.5

  @nn.compact
  def __call__(self, x, mask=None):
    del mask  # every number stands alone
    alpha = self.param("alpha", nn.initializers.constant(self.alpha_init), ())
    scale_D = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias_D = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    return dynamic_tanh(x, alpha, scale_D, bias_D)
