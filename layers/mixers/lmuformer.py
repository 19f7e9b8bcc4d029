"""LMUFormer's token mixer: one Legendre memory of one signal, read by a rectified layer.

    u_t = relu(w_u . x_t + b_u)        one number per token
    m_t = A_d m_{t-1} + B_d u_t        the last theta tokens, as N Legendre coefficients
    y_t = relu(W_h [m_t; x_t] + b_h)

Reference: Liu et al., "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory
Units", 2024. Departures: no spikes; norms are those of the stack, where the paper normalises
batches; no convolutional embedding of patches; the channel mixer, two 1-wide convolutions, is
layers/channel/mlp.py.
"""

import flax.linen as nn
import jax.numpy as jnp

from layers.dense import Dense
from layers.legendre_memory import memory, system

# Dims: B batch, T tokens, D model, E = N + D, N order of the memory.

TINY = dict(order=4, theta=5.0)


class LMUFormer(nn.Module):
  """The mixer: write one signal to the window, read window and token.

  Attributes:
    order: N.
    theta: length of the window, in tokens.
    form: "conv" or "recurrent".
    dtype: dtype of the projections. The memory stays in float32.
  """

  order: int = 64
  theta: float = 64.0
  form: str = "conv"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns zeros [B,N]."""
    return dict(m_BN=jnp.zeros((batch, self.order), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    B, _, D = x_BTD.shape
    A_NN, B_N = system(self.order, self.theta)
    u_BT1 = nn.relu(Dense(1, dtype=self.dtype, name="value")(x_BTD))
    m_BN = (state or self.init_state(B))["m_BN"]
    m_BT1N, m_B1N = memory(A_NN, B_N, u_BT1, m_BN[:, None], segment_ids, self.form)
    both_BTE = jnp.concatenate([m_BT1N[:, :, 0].astype(self.dtype), x_BTD.astype(self.dtype)], axis=-1)
    return nn.relu(Dense(D, dtype=self.dtype, name="out")(both_BTE)), dict(m_BN=m_B1N[:, 0])
