"""The gated linear unit without matrix products, from BitLinear maps P (layers/bit_linear.py).

    y = P_down (silu(P_gate x) * P_up x)

Reference: Zhu et al., "Scalable MatMul-free Language Modeling", 2024, section 3.3.2.
Departure: weights start as Flax starts them.
"""

import flax.linen as nn
import jax.numpy as jnp

from layers.bit_linear import BitLinear


class TernaryGLU(nn.Module):
  """Three ternary maps, each behind a norm of its own.

  Attributes:
    hidden: F; 0 means `expansion` times the width, rounded to a multiple of 8.
    expansion: F / D where hidden is 0.
    ternary: whether the maps are rounded; False is the same layer in full precision.
    dtype: dtype of what the maps return.
  """

  hidden: int = 0
  expansion: float = 8 / 3
  ternary: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    D = x_BTD.shape[-1]
    F = self.hidden or max(8, 8 * round(self.expansion * D / 8))
    project = lambda width, name: BitLinear(width, self.ternary, self.dtype, name=name)
    gate_BTF = nn.silu(project(F, "gate")(x_BTD))
    return project(D, "down")(gate_BTF * project(F, "up")(x_BTD))
