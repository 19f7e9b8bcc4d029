"""A window of each channel's past as coefficients of Legendre polynomials, A and B fixed and held over one token.

    theta m' = A m + B u,  sampled:  m_t = A_d m_{t-1} + B_d u_t
    A_ij = (2i + 1) (-1 for i < j, (-1)^(i-j+1) else),  B_i = (2i + 1) (-1)^i

m_t P(2 s - 1) is about u(t - s theta), s in [0, 1]: the window can be read at any delay. Nothing
feeds back, so that m is a convolution with the filter A_d^l B_d.

Reference: Voelker et al., "Legendre Memory Units", 2019; Chilukuri and Eliasmith, "Parallelizing
Legendre Memory Unit Training", 2021.
"""

from einops import rearrange
import jax.numpy as jnp
import numpy as np

from layers import dense_system, hippo, state_space
from layers.fft_conv import fft_conv

# Dims: B batch, T tokens, F channels, N order of the memory.


def system(order: int, theta: float):
  """Returns (A_NN, B_N) of one token, in float32.

  Raises:
    ValueError: order or theta below 1.
  """
  if order < 1 or theta < 1:
    raise ValueError(f"order={order} and theta={theta} must be at least 1.")
  return [jnp.asarray(x.astype(np.float32)) for x in hippo.zoh(*hippo.legt(order, theta), 1.0)]


def memory(A_NN, B_N, u_BTF, m_BFN, segment_ids=None, form="conv"):
  """Returns (m_BTFN, last m_BFN); packed rows take the recurrence whatever the form.

  Raises:
    ValueError: `form` is not "conv" or "recurrent".
  """
  state_space.check_form(form)
  if form == "recurrent" or segment_ids is not None:
    return dense_system.recurrent(A_NN, B_N[None], u_BTF, m_BFN, segment_ids)
  T = u_BTF.shape[1]
  impulse_TFN = dense_system.responses(A_NN, B_N[None, None], T)[:, 0]
  free_TBFN = dense_system.responses(A_NN, dense_system.apply(A_NN, m_BFN), T)
  m_BTFN = fft_conv(u_BTF[..., None], impulse_TFN) + rearrange(free_TBFN, "t b f n -> b t f n")
  return m_BTFN, m_BTFN[:, -1]
