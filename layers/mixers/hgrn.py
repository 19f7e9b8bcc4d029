"""HGRN: a gated mean per channel, normalised, gated by the token, projected back.

    h_t = f_t h_{t-1} + (1 - f_t) c_t        f_t = l + (1 - l) sigmoid(W_f x_t)
    y_t = W_out (RMSNorm(h_t) * silu(W_gate x_t))        c_t = silu(W_c x_t)

l in [0, 1) is a lower bound on the memory, higher in deeper layers: give a pattern
several nodes of this mixer.

Reference: Qin et al., "Hierarchically Gated Recurrent Neural Network for Sequence
Modeling", 2023. Departures: the state is real, where the paper turns a complex one by a
fixed angle per channel; l is a field, where the paper learns bounds that rise with depth;
projections start as Flax starts them.
"""

import flax.linen as nn
import jax.numpy as jnp

from layers.dense import Dense
from layers.hgru import mix

# Dims: B batch, T tokens, D model, F channels.

TINY = dict(width=5, lower_bound=0.3)


class HGRN(nn.Module):
  """The mixer; its state is one number per channel.

  Attributes:
    width: number of channels F, commonly the model's width.
    lower_bound: l.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Gates and state stay in float32.
  """

  width: int = 128
  lower_bound: float = 0.0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty average h_BF."""
    return dict(h_BF=jnp.zeros((batch, self.width), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    def project(width, name):
      return Dense(width, use_bias=False, dtype=self.dtype, name=name)

    return mix(self, project, x_BTD, state, segment_ids)
