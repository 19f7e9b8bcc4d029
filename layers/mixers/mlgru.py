"""MLGRU: a recurrence without matrix products, its maps made of additions and subtractions.

With BitLinear maps P (layers/bit_linear.py) and elementwise products elsewhere:

    h_t = f_t h_{t-1} + (1 - f_t) c_t        f_t = l + (1 - l) sigmoid(P_f x_t)
    y_t = P_out (RMSNorm(h_t) * silu(P_gate x_t))        c_t = silu(P_c x_t)

Reference: Zhu et al., "Scalable MatMul-free Language Modeling", 2024, section 3.3.1.
Departures: l is a field, where the paper's code learns bounds that rise with depth;
weights start as Flax starts them.
"""

import flax.linen as nn
import jax.numpy as jnp

from layers.bit_linear import BitLinear
from layers.hgru import mix

# Dims: B batch, T tokens, D model, F channels.

TINY = dict(width=5, lower_bound=0.3)


class MLGRU(nn.Module):
  """The mixer; its state is one number per channel.

  Attributes:
    width: number of channels F, commonly the model's width.
    lower_bound: l, in [0, 1).
    ternary: whether the maps are rounded; False is the same layer in full precision.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of what the maps return. Gates and state stay in float32.
  """

  width: int = 128
  lower_bound: float = 0.0
  ternary: bool = True
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty average h_BF."""
    return dict(h_BF=jnp.zeros((batch, self.width), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    def project(width, name):
      return BitLinear(width, self.ternary, self.dtype, name=name)

    return mix(self, project, x_BTD, state, segment_ids)
