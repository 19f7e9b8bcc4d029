"""S4D: a state space per channel with a diagonal transition, as a convolution or a recurrence.

Per channel, with modes n of which conjugate partners are left out, and u = W_v x:

    s_n' = Lambda_n s_n + u        y = 2 Re sum_n C_n s_n + D u        Re Lambda_n = -exp(r_n) < 0

sampled with a learned step d while the input holds still: Lambda -> exp(d Lambda), input times
(exp(d Lambda) - 1) / Lambda. Then z = gelu(y), and (W_o z + b_o) * sigmoid(W_g z + b_g) leaves the layer.

The convolution has the filter K_l = 2 Re sum_n C_n (exp(d Lambda_n) - 1) / Lambda_n exp(l d Lambda_n).

Reference: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models",
2022. Departures: W_v stands before, so that the state's width is a field; B is one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from layers import complex_pair, hippo, state_space
from layers.dense import Dense
from layers.fft_conv import fft_conv
from pallas_kernels.diag_scan import diag_scan

# Dims: B batch, T tokens, D model, F channels, N order of the state, M = N/2 modes.

TINY = dict(channels=3, order=4)


def sample(Lambda_FM, log_step_F):
  """Returns (d Lambda, input factor (exp(d Lambda) - 1) / Lambda), both [F,M] and complex."""
  z_FM = jnp.exp(log_step_F)[:, None] * Lambda_FM
  return z_FM, jnp.expm1(z_FM) / Lambda_FM


def convolve(u_BTF, z_FM, in_FM, C_FM, s_BFM):
  """Returns (y_BTF without the skip, last state); the state before adds its decaying response."""
  T = u_BTF.shape[1]
  power_FMT = jnp.exp(z_FM[..., None] * jnp.arange(T + 1)[None, None])
  kernel_TF = 2 * jnp.einsum("fm,fmt->tf", C_FM * in_FM, power_FMT[..., :T]).real
  y_BTF = fft_conv(u_BTF, kernel_TF)
  y_BTF += 2 * jnp.einsum("bfm,fmt->btf", C_FM[None] * s_BFM, power_FMT[..., 1:]).real
  last_BFM = jnp.einsum("btf,fmt->bfm", u_BTF, power_FMT[..., :T][..., ::-1]) * in_FM[None]
  return y_BTF, last_BFM + power_FMT[..., T][None] * s_BFM


def recur(u_BTF, z_FM, in_FM, C_FM, s_BFM, segment_ids, backend):
  """`convolve`, token by token, with packed documents kept apart."""
  s_BTFM, last_BFM = diag_scan(jnp.exp(z_FM), in_FM[None, None] * u_BTF[..., None], h0=s_BFM,
                               segment_ids=segment_ids, backend=backend)
  return 2 * jnp.einsum("btfm,fm->btf", s_BTFM, C_FM).real, last_BFM


class S4D(nn.Module):
  """The mixer: project, run one state space per channel, gate, project back.

  Attributes:
    channels: F.
    order: N, numbers in the state of a channel; even.
    modes: "legs" takes those of HiPPO, "lin" -1/2 + i pi n.
    step_min, step_max: range of the steps at first, in units of the modes' time per token.
    form: "conv" or "recurrent"; packed rows take the recurrence.
    backend: of pallas_kernels.diag_scan.
    dtype: dtype of the projections. Modes, filter and state stay in float32.
  """

  channels: int = 64
  order: int = 64
  modes: str = "legs"
  step_min: float = 1e-3
  step_max: float = 0.1
  form: str = "conv"
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns zeros [B,F,M,2], real and imaginary parts."""
    return dict(S_BFM2=jnp.zeros((batch, self.channels, self.order // 2, 2), jnp.float32))

  def _lambda(self):
    F, M = self.channels, self.order // 2
    make = {"legs": lambda N: hippo.legs_modes(N)[0], "lin": hippo.linear_modes}[self.modes]
    Lambda_FM = np.broadcast_to(make(self.order), (F, M))
    constant = lambda x: lambda key: jnp.asarray(x, jnp.float32)
    rate_FM = self.param("log_rate", constant(np.log(-Lambda_FM.real)))
    return jax.lax.complex(-jnp.exp(rate_FM), self.param("frequency", constant(Lambda_FM.imag)))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    _check(self)
    F, M, D = self.channels, self.order // 2, x_BTD.shape[-1]
    log_step_F = self.param("log_step", state_space.log_steps(F, self.step_min, self.step_max))
    C_FM2 = self.param("C", nn.initializers.normal(0.5**0.5), (F, M, 2))
    skip_F = self.param("D", nn.initializers.normal(1.0), (F,))
    z_FM, in_FM = sample(self._lambda(), log_step_F)
    C_FM = complex_pair.join(C_FM2)
    S_BFM2 = (state or self.init_state(x_BTD.shape[0]))["S_BFM2"]
    s_BFM = complex_pair.join(S_BFM2)

    dense = lambda width, name: Dense(width, dtype=self.dtype, name=name)
    u_BTF = dense(F, "value")(x_BTD).astype(jnp.float32)
    if self.form == "conv" and segment_ids is None:
      y_BTF, s_BFM = convolve(u_BTF, z_FM, in_FM, C_FM, s_BFM)
    else:
      y_BTF, s_BFM = recur(u_BTF, z_FM, in_FM, C_FM, s_BFM, segment_ids, self.backend)
    y_BTF = nn.gelu(y_BTF + skip_F[None, None] * u_BTF).astype(self.dtype)
    y_BTD = dense(D, "out")(y_BTF) * nn.sigmoid(dense(D, "gate")(y_BTF))
    return y_BTD, dict(S_BFM2=complex_pair.split(s_BFM))


def _check(layer):
  state_space.check_order(layer.order)
  if layer.modes not in ("legs", "lin"):
    raise ValueError(f"modes={layer.modes!r} must be one of legs, lin.")
  state_space.check_form(layer.form)
  state_space.check_steps(layer.step_min, layer.step_max)
