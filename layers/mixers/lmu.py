"""LMU: each channel keeps a window of its past as coefficients of Legendre polynomials.

With F inputs u = W_u x and a memory m of N coefficients each (layers/legendre_memory.py):

    h_t = tanh(W_m m_t + W_x x_t + b),  y_t = W_o h_t

Reference: Voelker et al., "Legendre Memory Units", 2019; without feedback from h in Chilukuri and
Eliasmith, "Parallelizing Legendre Memory Unit Training", 2021. Departure: W_o.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp

from layers.dense import Dense
from layers.legendre_memory import memory, system

# Dims: B batch, T tokens, D model, F channels, N order of the memory.

TINY = dict(channels=3, order=4, theta=5.0)


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
    B, _, D = x_BTD.shape
    A_NN, B_N = system(self.order, self.theta)
    dense = lambda width, bias, name: Dense(width, use_bias=bias, dtype=self.dtype, name=name)

    u_BTF = dense(self.channels, False, "value")(x_BTD)
    m_BFN = (state or self.init_state(B))["m_BFN"]
    m_BTFN, m_BFN = memory(A_NN, B_N, u_BTF, m_BFN, segment_ids, self.form)
    window_BTE = rearrange(m_BTFN, "b t f n -> b t (f n)").astype(self.dtype)
    width = self.hidden or D
    h_BTE = nn.tanh(dense(width, False, "memory")(window_BTE) + dense(width, True, "input")(x_BTD))
    return dense(D, False, "out")(h_BTE), dict(m_BFN=m_BFN)
