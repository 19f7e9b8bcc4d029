"""LMUFormer's token mixer: one Legendre memory of one signal, read by a rectified layer.

    u_t = relu(w_u . x_t + b_u)        one number per token
    m_t = A_d m_{t-1} + B_d u_t        the last theta tokens, as N Legendre coefficients
    y_t = relu(W_h [m_t; x_t] + b_h)

Reference: Liu et al., "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory
Units", 2024. Departures: no spikes; norms are those of the stack, where the paper normalises
batches; no convolutional embedding of patches; the channel mixer, two 1-wide convolutions, is
layers/channel/mlp.py.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from layers import dense_system, hippo
from layers.fft_conv import fft_conv

# Dims: B batch, T tokens, D model, E = N + D, N order of the memory.

TINY = dict(order=4, theta=5.0)


def memory(A_NN, B_N, u_BT, m_BN, segment_ids=None, form="conv"):
  """Returns (m_BTN, last m_BN); packed rows take the recurrence whatever the form."""
  u_BT1, m_B1N = u_BT[..., None], m_BN[:, None]
  if form == "recurrent" or segment_ids is not None:
    m_BT1N, m_B1N = dense_system.recurrent(A_NN, B_N[None], u_BT1, m_B1N, segment_ids)
    return m_BT1N[:, :, 0], m_B1N[:, 0]
  T = u_BT.shape[1]
  impulse_TN = dense_system.responses(A_NN, B_N[None, None], T)[:, 0, 0]
  free_TB1N = dense_system.responses(A_NN, dense_system.apply(A_NN, m_B1N), T)
  m_BTN = fft_conv(u_BT1, impulse_TN) + rearrange(free_TB1N, "t b 1 n -> b t n")
  return m_BTN, m_BTN[:, -1]


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
    if self.order < 1 or self.theta < 1:
      raise ValueError(f"order={self.order} and theta={self.theta} must be at least 1.")
    if self.form not in ("conv", "recurrent"):
      raise ValueError(f"form={self.form!r} must be one of conv, recurrent.")
    B, _, D = x_BTD.shape
    system = hippo.zoh(*hippo.legt(self.order, self.theta), 1.0)
    A_NN, B_N = (jnp.asarray(x.astype(np.float32)) for x in system)

    u_BT = nn.relu(nn.Dense(1, dtype=self.dtype, name="value")(x_BTD))[..., 0]
    m_BN = (state or self.init_state(B))["m_BN"]
    m_BTN, m_BN = memory(A_NN, B_N, u_BT, m_BN, segment_ids, self.form)
    both_BTE = jnp.concatenate([m_BTN.astype(self.dtype), x_BTD.astype(self.dtype)], axis=-1)
    return nn.relu(nn.Dense(D, dtype=self.dtype, name="out")(both_BTE)), dict(m_BN=m_BN)
