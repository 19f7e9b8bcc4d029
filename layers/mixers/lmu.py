"""LMU: each channel keeps a window of its past as coefficients of Legendre polynomials.

With F inputs u = W_u x and a memory of N coefficients each, A and B fixed and held over one token:

    theta m' = A m + B u,  sampled:  m_t = A_d m_{t-1} + B_d u_t
    A_ij = (2i + 1) (-1 for i < j, (-1)^(i-j+1) else),  B_i = (2i + 1) (-1)^i
    h_t = tanh(W_m m_t + W_x x_t + b),  y_t = W_o h_t

m_t P(2 s - 1) is about u(t - s theta), s in [0, 1]: the window can be read at any delay. Nothing
feeds back from h, so that m is a convolution with the filter A_d^l B_d.

Reference: Voelker et al., "Legendre Memory Units", 2019; without feedback in Chilukuri and
Eliasmith, "Parallelizing Legendre Memory Unit Training", 2021. Departure: W_o.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from layers import dense_system, hippo
from layers.fft_conv import fft_conv

# Dims: B batch, T tokens, D model, F channels, N order of the memory.

TINY = dict(channels=3, order=4, theta=5.0)


def memory(A_NN, B_N, u_BTF, m_BFN, segment_ids=None, form="conv"):
  """Returns (m_BTFN, last m_BFN); packed rows take the recurrence whatever the form."""
  if form == "recurrent" or segment_ids is not None:
    return dense_system.recurrent(A_NN, B_N[None], u_BTF, m_BFN, segment_ids)
  T = u_BTF.shape[1]
  impulse_TFN = dense_system.responses(A_NN, B_N[None, None], T)[:, 0]
  free_TBFN = dense_system.responses(A_NN, dense_system.apply(A_NN, m_BFN), T)
  m_BTFN = fft_conv(u_BTF[..., None], impulse_TFN) + rearrange(free_TBFN, "t b f n -> b t f n")
  return m_BTFN, m_BTFN[:, -1]


class LMU(nn.Module):
  """The mixer: write to the window, read all of it together with the token.

  Attributes:
    channels: F.
    order: N.
    theta: length of the window, in tokens.
    hidden: width of h; 0 takes the model's.
    form: "conv" or "recurrent".
    dtype: dtype of the projections. The memory stays in float32.
  """

  channels: int = 16
  order: int = 16
  theta: float = 64.0
  hidden: int = 0
  form: str = "conv"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns zeros [B,F,N]."""
    return dict(m_BFN=jnp.zeros((batch, self.channels, self.order), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    if self.order < 1 or self.theta < 1:
      raise ValueError(f"order={self.order} and theta={self.theta} must be at least 1.")
    if self.form not in ("conv", "recurrent"):
      raise ValueError(f"form={self.form!r} must be one of conv, recurrent.")
    B, _, D = x_BTD.shape
    system = hippo.zoh(*hippo.legt(self.order, self.theta), 1.0)
    A_NN, B_N = (jnp.asarray(x.astype(np.float32)) for x in system)
    dense = lambda width, bias, name: nn.Dense(width, use_bias=bias, dtype=self.dtype, name=name)

    u_BTF = dense(self.channels, False, "value")(x_BTD)
    m_BFN = (state or self.init_state(B))["m_BFN"]
    m_BTFN, m_BFN = memory(A_NN, B_N, u_BTF, m_BFN, segment_ids, self.form)
    window_BTE = rearrange(m_BTFN, "b t f n -> b t (f n)").astype(self.dtype)
    width = self.hidden or D
    h_BTE = nn.tanh(dense(width, False, "memory")(window_BTE) + dense(width, True, "input")(x_BTD))
    return dense(D, False, "out")(h_BTE), dict(m_BFN=m_BFN)
