"""The two-layer perceptron of the transformer block.

    y = W_down a(W_up x)          a pointwise, F hidden features per token

Reference: Vaswani et al., "Attention Is All You Need", 2017, section 3.3.
"""

import flax.linen as nn
import jax.numpy as jnp

from layers.activations import activation
from layers.dense import Dense


class MLP(nn.Module):
  """Expands to `hidden` features, bends, and returns to the width of x.

  Attributes:
    hidden: F; 0 means `expansion` times the width.
    expansion: F / D where hidden is 0.
    activation: a name of layers/activations.py.
    kernel_transform: of every map, a name of layers/kernel_transforms.py; "" is none.
    bias: whether the two maps have biases.
    dtype: dtype of the matrix products.
  """

  hidden: int = 0
  expansion: float = 4.0
  activation: str = "gelu"
  bias: bool = False
  kernel_transform: str = ""
  dtype: jnp.dtype = jnp.float32

  reads, writes = ("up",), ("down",)  # layers/stream_map.py

  @nn.compact
  def __call__(self, x_BTD):
    D = x_BTD.shape[-1]
    F = self.hidden or round(self.expansion * D)
    if F < 1:
      raise ValueError(f"expansion={self.expansion} leaves no features at width {D}; "
                       "give a larger one, or hidden.")
    dense = lambda width, name: Dense(width, use_bias=self.bias, dtype=self.dtype, name=name,
                                      kernel_transform=self.kernel_transform)
    h_BTF = dense(F, "up")(x_BTD)
    h_BTF = activation(self.activation)(h_BTF)
    return dense(D, "down")(h_BTF)
