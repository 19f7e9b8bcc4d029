"""SGLU, a gated linear unit whose gate does not bend: the product of two linear maps.

    y = W_down (W_gate x * W_up x)

Twice the input is four times the output; the norm before it keeps that in bounds.

Reference: Qin et al., "Scaling TransNormer to 175 Billion Parameters", 2023.
"""

import flax.linen as nn
import jax.numpy as jnp

from layers.dense import Dense


class SGLU(nn.Module):
  """Three maps without biases, as wide as those of a GLU.

  Attributes:
    hidden: F; 0 means `expansion` times the width, rounded to a multiple of 8.
    expansion: F / D where hidden is 0.
    dtype: dtype of the matrix products.
  """

  hidden: int = 0
  expansion: float = 8 / 3
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    D = x_BTD.shape[-1]
    F = self.hidden or max(8, 8 * round(self.expansion * D / 8))
    dense = lambda width, name: Dense(width, use_bias=False, dtype=self.dtype, name=name)
    return dense(D, "down")(dense(F, "gate")(x_BTD) * dense(F, "up")(x_BTD))
