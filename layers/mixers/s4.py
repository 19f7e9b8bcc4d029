"""S4: a state space per channel, diagonal plus low rank, whose filter is a sum of Cauchy kernels.

Per channel, u = W_v x, on conjugate pairs of which one partner is kept (M = N/2 modes):

    s' = (Lambda - P P*) s + B u        y = 2 Re C s + D u        Re Lambda_n = -exp(r_n) < 0

stepped by the trapezoid rule: A_d = (2/d - A)^-1 (2/d + A), B_d = 2 (2/d - A)^-1 B. The filter
K_l = C A_d^l B_d, l < L, is the inverse transform of its generating function at w = exp(-2 pi i l / L),

    K(w) = 2 [r_CB - (1 + w) r_CP r_PB / (1 + (1 + w) r_PP)]
    r_ab = sum_n a_n b_n / ((2/d) (1 - w) - Lambda_n (1 + w))        a conjugated for P

over modes and their partners; multiplied out by 1 + w as here it is finite at w = -1 as well. The
parameter is C~ = C (I - A_d^L): the filter needs no power of A. The recurrence solves for C and steps
with the dense real N x N matrix A_d, a cost of N^3 log L per channel at every call.
z = gelu(y), and (W_o z + b_o) * sigmoid(W_g z + b_g) leaves the layer.

Reference: Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces", 2022.
Departures: W_v stands before, so that the state's width is a field; the low-rank part is P P*, which
keeps A stable, where the paper has P Q*.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from layers import complex_pair, dense_system, hippo, state_space
from layers.dense import Dense
from layers.fft_conv import fft_conv

# Dims: B batch, T tokens, D model, F channels, N order of the state, M = N/2 modes, L length, W = L/2 + 1 nodes.

# Steps that forget within the length: solving for C loses as many digits as d L is below 1.
TINY = dict(channels=3, order=4, length=16, step_min=0.1, step_max=0.5)


def kernel(Lambda_FM, P_FM, B_FM, C_FM, step_F, length: int):
  """Returns the filter K_LF of the truncated system with readout C~."""
  # Nodes near 1 lose the digits of 1 - w in float32: both sums are made in float64.
  w_W = np.exp(-2j * np.pi * np.arange(length // 2 + 1) / length)
  minus_W, plus_W = jnp.asarray(1 - w_W, jnp.complex64), jnp.asarray(1 + w_W, jnp.complex64)
  half_F11 = step_F[:, None, None] / 2

  def poles(z_FM):
    return half_F11 / (minus_W[None, None] - half_F11 * z_FM[..., None] * plus_W[None, None])

  one_FMW, two_FMW = poles(Lambda_FM), poles(Lambda_FM.conj())

  def total(a_FM):
    return jnp.einsum("fm,fmw->fw", a_FM, one_FMW) + jnp.einsum("fm,fmw->fw", a_FM.conj(), two_FMW)

  CB, CP, PB, PP = (total(a) for a in (C_FM * B_FM, C_FM * P_FM, P_FM.conj() * B_FM, P_FM.conj() * P_FM))
  hat_FW = 2 * (CB - plus_W[None] * CP * PB / (1 + plus_W[None] * PP))
  return jnp.fft.irfft(hat_FW, length, axis=1).T


def dense(Lambda_FM, P_FM, B_FM, step_F):
  """Returns (A_FNN, B_FN), one step as real matrices on (real parts, imaginary parts) of the modes."""
  M = Lambda_FM.shape[1]
  rate_FM1 = (2 / step_F)[:, None, None]
  eye_1MN = jnp.asarray(np.concatenate([np.eye(M), 1j * np.eye(M)], axis=1)[None], jnp.complex64)
  z_FM1, P_FM1 = Lambda_FM[..., None], P_FM[..., None]
  along = lambda x_FMX: 2 * jnp.sum(P_FM1.conj() * x_FMX, axis=1, keepdims=True).real  # P* on pairs
  pole_FM1 = 1 / (rate_FM1 - z_FM1)

  def solve(x_FMX):
    """(2/d - A)^-1 x by Woodbury's identity."""
    x_FMX = pole_FM1 * x_FMX
    return x_FMX - pole_FM1 * P_FM1 * (along(x_FMX) / (1 + along(pole_FM1 * P_FM1)))

  real = lambda x_FMX: jnp.concatenate([x_FMX.real, x_FMX.imag], axis=1)
  A_FMN = solve((rate_FM1 + z_FM1) * eye_1MN - P_FM1 * along(eye_1MN))
  return real(A_FMN), real(solve(2 * B_FM[..., None]))[..., 0]


def readout(C_FM, A_FNN, length: int):
  """Returns C_FN of the recurrence: C~ (I - A^L)^-1 on (real, imaginary) parts."""
  tilde_FN = 2 * jnp.concatenate([C_FM.real, -C_FM.imag], axis=1)
  left_FNN = jnp.eye(A_FNN.shape[-1])[None] - jnp.linalg.matrix_power(A_FNN, length)
  return jnp.linalg.solve(left_FNN.swapaxes(1, 2), tilde_FN[..., None])[..., 0]


class S4(nn.Module):
  """The mixer: project, run one state space per channel, gate, project back.

  Attributes:
    channels: F.
    order: N, numbers in the state of a channel; even.
    length: L, tokens of the longest row in the form "conv".
    transition: "legs" starts from HiPPO; "random" draws the frequencies from the normal distribution
      of variance N, like those of a normal matrix, and P and B from that of variance 1.
    step_min, step_max: range of the steps at first, in units of A's time per token.
    form: "conv" or "recurrent"; packed rows and rows with a state take the recurrence.
    dtype: dtype of the projections. Transition, filter and state stay in float32.
  """

  channels: int = 64
  order: int = 64
  length: int = 1024
  transition: str = "legs"
  step_min: float = 1e-3
  step_max: float = 0.1
  form: str = "conv"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns zeros [B,F,N], real parts of the modes and then imaginary ones."""
    return dict(S_BFN=jnp.zeros((batch, self.channels, self.order), jnp.float32))

  def _system(self):
    """Returns Lambda, P and B, [F,M] and complex."""
    F, M = self.channels, self.order // 2
    if self.transition == "legs":
      Lambda_M, P_M, B_M, _ = hippo.legs_modes(self.order)
      pair = lambda x_M: np.stack([x_M.real, x_M.imag], axis=-1)
      start = lambda x: lambda key: jnp.broadcast_to(jnp.asarray(x, jnp.float32)[None], (F, *x.shape))
      frequency, P, B = start(Lambda_M.imag), start(pair(P_M)), start(pair(B_M))
    else:
      draw = lambda shape, std: lambda key: std * jax.random.normal(key, shape)
      frequency = draw((F, M), self.order**0.5)
      P = B = draw((F, M, 2), 0.5**0.5)
    rate_FM = self.param("log_rate", nn.initializers.constant(np.log(0.5)), (F, M))
    Lambda_FM = jax.lax.complex(-jnp.exp(rate_FM), self.param("frequency", frequency))
    P_FM2, B_FM2 = self.param("P", P), self.param("B", B)
    return Lambda_FM, complex_pair.join(P_FM2), complex_pair.join(B_FM2)

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    _check(self)
    B, T, D = x_BTD.shape
    F, M, L = self.channels, self.order // 2, self.length
    conv = self.form == "conv" and state is None and segment_ids is None
    if conv and T > L:
      raise ValueError(f"length={L} must cover the row of {T} tokens; raise it, or take form='recurrent'.")
    step_F = jnp.exp(self.param("log_step", state_space.log_steps(F, self.step_min, self.step_max)))
    C_FM2 = self.param("C", nn.initializers.normal(0.5**0.5), (F, M, 2))
    skip_F = self.param("D", nn.initializers.normal(1.0), (F,))
    Lambda_FM, P_FM, B_FM = self._system()
    C_FM = complex_pair.join(C_FM2)
    s_BFN = (state or self.init_state(B))["S_BFN"]

    project = lambda width, name: Dense(width, dtype=self.dtype, name=name)
    u_BTF = project(F, "value")(x_BTD).astype(jnp.float32)
    A_FNN, B_FN = dense(Lambda_FM, P_FM, B_FM, step_F)
    if conv:
      y_BTF = fft_conv(u_BTF, kernel(Lambda_FM, P_FM, B_FM, C_FM, step_F, L)[:T])
      # Compiled away where nobody asks for the state, as in training.
      _, s_BFN = dense_system.recurrent(A_FNN, B_FN, u_BTF, s_BFN, readout=lambda s: s[:, 0, 0])
    else:
      C_FN = readout(C_FM, A_FNN, L)
      read = lambda s_BFN: jnp.einsum("bfn,fn->bf", s_BFN, C_FN)
      y_BTF, s_BFN = dense_system.recurrent(A_FNN, B_FN, u_BTF, s_BFN, segment_ids, read)
    y_BTF = nn.gelu(y_BTF + skip_F[None, None] * u_BTF).astype(self.dtype)
    y_BTD = project(D, "out")(y_BTF) * nn.sigmoid(project(D, "gate")(y_BTF))
    return y_BTD, dict(S_BFN=s_BFN)


def _check(layer):
  state_space.check_order(layer.order)
  if layer.length < 2:
    raise ValueError(f"length={layer.length} must be at least 2 tokens.")
  if layer.transition not in ("legs", "random"):
    raise ValueError(f"transition={layer.transition!r} must be one of legs, random.")
  state_space.check_form(layer.form)
  state_space.check_steps(layer.step_min, layer.step_max)
