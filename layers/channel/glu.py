"""The gated linear unit as a channel mixer: one projection gates another.

    y = W_down (a(W_gate x) * W_up x)       a = silu gives SwiGLU, gelu GEGLU

Reference: Shazeer, "GLU Variants Improve Transformer", 2020.
"""

import flax.linen as nn
import jax.numpy as jnp

from layers.activations import activation
from layers.dense import Dense


class GLU(nn.Module):
  """Three maps; with the default expansion, as many parameters as an MLP of 4.

  Attributes:
    hidden: F; 0 means `expansion` times the width, rounded to a multiple of 8.
    expansion: F / D where hidden is 0.
    activation: a name of layers/activations.py, on the gate.
    kernel_transform: of every map, a name of layers/kernel_transforms.py; "" is none.
    bias: whether the three maps have biases.
    dtype: dtype of the matrix products.
  """

  hidden: int = 0
  expansion: float = 8 / 3
  activation: str = "silu"
  bias: bool = False
  kernel_transform: str = ""
  dtype: jnp.dtype = jnp.float32

  reads, writes = ("gate", "up"), ("down",)  # layers/stream_map.py

  @nn.compact
  def __call__(self, x_BTD):
    D = x_BTD.shape[-1]
    F = self.hidden or max(8, 8 * round(self.expansion * D / 8))
    dense = lambda width, name: Dense(width, use_bias=self.bias, dtype=self.dtype, name=name,
                                      kernel_transform=self.kernel_transform)
    gate_BTF = activation(self.activation)(dense(F, "gate")(x_BTD))
    return dense(D, "down")(gate_BTF * dense(F, "up")(x_BTD))
