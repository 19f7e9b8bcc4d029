"""LSSL: a state space per channel with a dense transition, seen as an ODE, a recurrence and a convolution.

Per channel with input u = W_v x, O outputs and a transition A that all channels share:

    s'(t) = A s(t) + B u(t)        y = C s + D u        C is O x N

One step of learned length d takes the share alpha of its slope from its own end:

    A_d = (I - alpha d A)^-1 (I + (1 - alpha) d A),   B_d = (I - alpha d A)^-1 d B

so that s_t = A_d s_{t-1} + B_d u_t, or y = K * u with the filter K_l = C A_d^l B_d. gelu(y) of
all F O outputs is mixed by W_o.

Reference: Gu et al., "Combining Recurrent, Convolutional, and Continuous-time Models with Linear
State-Space Layers", 2021. Departures: W_v stands before, so that the state's width is a field;
where A is learned it is free, not of the paper's structured class.
"""

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import dense_system, hippo, state_space
from layers.dense import Dense
from layers.fft_conv import fft_conv

# Dims: B batch, T tokens, D model, F channels, N order of the state, O outputs per channel, E = F O.

TINY = dict(channels=3, order=4, outputs=2)


def discretise(A_NN, B_N, step_F, alpha: float):
  """Returns (A_FNN, B_FN) of one step per channel, in float32."""
  one_NN = jnp.eye(len(B_N))
  dA_FNN = step_F[:, None, None] * A_NN[None]
  both = jnp.concatenate([one_NN[None] + (1 - alpha) * dA_FNN, (step_F[:, None] * B_N[None])[..., None]], -1)
  both = jnp.linalg.solve(one_NN[None] - alpha * dA_FNN, both)
  return both[..., :-1], both[..., -1]


def convolve(u_BTF, A_FNN, B_FN, C_FON, s_BFN):
  """Returns (y_BTFO without the skip, last state); the state before adds its decaying response."""
  T = u_BTF.shape[1]
  krylov_TFN = dense_system.responses(A_FNN, B_FN[None], T)[:, 0]
  kernel_TFO = jnp.einsum("tfn,fon->tfo", krylov_TFN, C_FON)
  # The state before the row is one more input vector, already one step old at the first token.
  free_TBFN = dense_system.responses(A_FNN, dense_system.apply(A_FNN, s_BFN), T)
  y_BTFO = fft_conv(u_BTF[..., None], kernel_TFO) + jnp.einsum("tbfn,fon->btfo", free_TBFN, C_FON)
  return y_BTFO, free_TBFN[-1] + jnp.einsum("btf,tfn->bfn", u_BTF, krylov_TFN[::-1])


def recur(u_BTF, A_FNN, B_FN, C_FON, s_BFN, segment_ids):
  """`convolve`, token by token, with packed documents kept apart."""
  readout = lambda s_BFN: jnp.einsum("bfn,fon->bfo", s_BFN, C_FON)
  return dense_system.recurrent(A_FNN, B_FN, u_BTF, s_BFN, segment_ids, readout)


class LSSL(nn.Module):
  """The mixer: project, run the state spaces, mix their outputs.

  Attributes:
    channels: F.
    order: N, numbers in the state of a channel.
    outputs: O.
    transition: A at first; "legs" or "legt" (window 1) of HiPPO, or "random": normal entries of
      variance 1 / N less the identity, whose spectrum is a unit disc left of zero.
    learned: whether A is trained; steps, C and D always are.
    alpha: of the step; 0 Euler's rule, 1/2 the trapezoid, 1 the backward rule.
    step_min, step_max: range of the steps at first, in units of A's time per token.
    form: "conv" or "recurrent"; packed rows take the recurrence.
    dtype: dtype of the projections. Transition, filter and state stay in float32.
  """

  channels: int = 64
  order: int = 32
  outputs: int = 1
  transition: str = "legs"
  learned: bool = False
  alpha: float = 0.5
  step_min: float = 1e-3
  step_max: float = 0.1
  form: str = "conv"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns zeros [B,F,N]."""
    return dict(S_BFN=jnp.zeros((batch, self.channels, self.order), jnp.float32))

  def _system(self):
    """Returns (A_NN, B_N) of continuous time."""
    N = self.order
    _, B_N = hippo.legt(N) if self.transition == "legt" else hippo.legs(N)
    def start(key):
      if self.transition == "random":
        return jax.random.normal(key, (N, N)) / N**0.5 - jnp.eye(N)
      return jnp.asarray((hippo.legs if self.transition == "legs" else hippo.legt)(N)[0], jnp.float32)
    A_NN = self.param("A", start)
    return A_NN if self.learned else jax.lax.stop_gradient(A_NN), jnp.asarray(B_N, jnp.float32)

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    _check(self)
    F, O, D = self.channels, self.outputs, x_BTD.shape[-1]
    log_step_F = self.param("log_step", state_space.log_steps(F, self.step_min, self.step_max))
    C_FON = self.param("C", nn.initializers.normal(self.order**-0.5), (F, O, self.order))
    skip_FO = self.param("D", nn.initializers.normal(1.0), (F, O))
    A_FNN, B_FN = discretise(*self._system(), jnp.exp(log_step_F), self.alpha)
    s_BFN = (state or self.init_state(x_BTD.shape[0]))["S_BFN"]

    u_BTF = Dense(F, dtype=self.dtype, name="value")(x_BTD).astype(jnp.float32)
    if self.form == "conv" and segment_ids is None:
      y_BTFO, s_BFN = convolve(u_BTF, A_FNN, B_FN, C_FON, s_BFN)
    else:
      y_BTFO, s_BFN = recur(u_BTF, A_FNN, B_FN, C_FON, s_BFN, segment_ids)
    y_BTFO += skip_FO[None, None] * u_BTF[..., None]
    y_BTE = nn.gelu(rearrange(y_BTFO, "b t f o -> b t (f o)")).astype(self.dtype)
    return Dense(D, dtype=self.dtype, name="out")(y_BTE), dict(S_BFN=s_BFN)


def _check(layer):
  if layer.transition not in ("legs", "legt", "random"):
    raise ValueError(f"transition={layer.transition!r} must be one of legs, legt, random.")
  state_space.check_form(layer.form)
  if not 0 <= layer.alpha <= 1:
    raise ValueError(f"alpha={layer.alpha} must lie in [0, 1], the share of a step's slope from its end.")
  state_space.check_steps(layer.step_min, layer.step_max)
