"""Mamba (S6): a diagonal state space per channel, whose step, input and output the token chooses.

Per channel f of F, with u after a causal convolution with bias and silu, the state has N numbers:

    h_t[f,n] = a_t[f,n] h_{t-1}[f,n] + d_t[f] B_t[n] u_t[f]        a_t = exp(-A[f,n] d_t[f])
    y_t = W_out ((sum_n C_t[n] h_t[:,n] + D * u_t) * silu(W_gate x_t))
    d_t = softplus(W_2 W_1 u_t + b),        B_t = W_B u_t,        C_t = W_C u_t

W_1 is F x R with R small. With negative_eigenvalues a_t = 2 exp(-A d_t) - 1, in (-1, 1).
The decay differs for every f and n, so no form of this is a matrix product: a_t, what is
written, and h_t are each B T F N numbers of float32 (12 N bytes per token and channel,
192 at N = 16), and the backward pass keeps a_t and h_t. `remat` of the stack trades that
for a second forward pass.

Reference: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
2023; Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through Negative
Eigenvalues", 2024. Departures: the one input projection is two; filters start with mean
square 1 / W and convolution biases at zero; projections start as Flax starts them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import conv_heads, step_decay, sums
from layers.dense import Dense
from layers.short_conv import ShortConv
from pallas_kernels.diag_scan import diag_scan

# Dims: B batch, T tokens, D model, F channels, N states per channel, R rank of the step.

TINY = dict(channels=5, states=3, conv=3)


@jax.custom_vjp
def decay(d_BTF, A_FN):
  """Returns exp(-A d)_BTFN.

  Its backward pass is written out, as differentiation's sums, and an einsum's products for every channel, are
  slower on a CPU. Measured 2026-11-21 on one AMD EPYC core, forward and backward of T 2048, F 128, N 16 in ms:
  differentiated 73, as an einsum 34, thus 13 with jax 0.10.2, and 16, 30 and 12 with 0.12.
  """
  return jnp.exp(-d_BTF[..., None] * A_FN[None, None])


def _decay_forward(d_BTF, A_FN):
  a_BTFN = decay(d_BTF, A_FN)
  return a_BTFN, (a_BTFN, d_BTF, A_FN)


def _decay_backward(kept, da_BTFN):
  a_BTFN, d_BTF, A_FN = kept
  fall_BTFN = -da_BTFN * a_BTFN
  dd_BTF = sums.over_features(fall_BTFN * A_FN[None, None])
  dA = sums.over_rows((fall_BTFN * d_BTF[..., None]).reshape(-1, A_FN.size))
  return dd_BTF, dA.reshape(A_FN.shape)


decay.defvjp(_decay_forward, _decay_backward)


def selective_scan(u_BTF, d_BTF, A_FN, B_BTN, C_BTN, h_BFN=None, segment_ids_BT=None, *,
                   negative_eigenvalues=False, backend="auto"):
  """Runs the state space in float32, without the skip.

  Args:
    u_BTF: inputs.
    d_BTF: steps, above 0.
    A_FN: rates of decay, above 0.
    B_BTN, C_BTN: where the token writes and reads.
    h_BFN: state left by earlier tokens; zeros if None.
    segment_ids_BT: of the tokens, or None.
    negative_eigenvalues: whether decays reach down to -1.
    backend: of the kernel.

  Returns:
    (y_BTF, h_BFN after the last token), in float32.
  """
  u_BTF, d_BTF, B_BTN, C_BTN = (z.astype(jnp.float32) for z in (u_BTF, d_BTF, B_BTN, C_BTN))
  a_BTFN = decay(d_BTF, A_FN)
  if negative_eigenvalues:
    a_BTFN = 2 * a_BTFN - 1
  # An einsum: its gradients are matrix products, on a CPU several times faster than sums.
  write_BTFN = jnp.einsum("btf,btn->btfn", d_BTF * u_BTF, B_BTN, precision=jax.lax.Precision.HIGHEST)
  h_BTFN, h_BFN = diag_scan(a_BTFN, write_BTFN, h0=h_BFN, segment_ids=segment_ids_BT, backend=backend)
  return jnp.einsum("btfn,btn->btf", h_BTFN, C_BTN), h_BFN


def _rates_init(key, shape):
  """log(1 .. N) in every channel."""
  del key
  return jnp.broadcast_to(jnp.log(jnp.arange(1.0, shape[1] + 1))[None], shape)


def _step_kernel_init(key, shape, dtype=jnp.float32):
  """Uniform in +- R^-1/2."""
  return jax.random.uniform(key, shape, dtype, -1, 1) * shape[0] ** -0.5


class Mamba(nn.Module):
  """The mixer: project, convolve, scan, skip, gate, project back.

  Attributes:
    channels: F, commonly twice the model's width.
    states: N, per channel.
    step_rank: R; 0 is a sixteenth of the model's width, rounded up.
    conv: width of the convolution, in tokens; 0 leaves it out.
    negative_eigenvalues: whether decays lie in (-1, 1) instead of (0, 1).
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Decays, steps and state stay in float32.
  """

  channels: int = 256
  states: int = 16
  step_rank: int = 0
  conv: int = 4
  negative_eigenvalues: bool = False
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty state h_BFN and, with a convolution, the inputs before the first."""
    past = conv_heads.init_state(batch, self.conv, self.dtype, dict(conv=self.channels))
    return dict(past, h_BFN=jnp.zeros((batch, self.channels, self.states), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    conv_heads.check(self.conv)
    if min(self.channels, self.states) < 1 or self.step_rank < 0:
      raise ValueError(f"channels={self.channels} and states={self.states} must be at least 1, "
                       f"step_rank={self.step_rank} at least 0.")
    F, N, D, past, final = self.channels, self.states, x_BTD.shape[-1], state or {}, {}

    def project(width, name):
      return Dense(width, use_bias=False, dtype=self.dtype, name=name)

    u_BTF = project(F, "value")(x_BTD)
    if self.conv:
      u_BTF, final["conv"] = ShortConv(self.conv, name="conv")(u_BTF, past.get("conv"), segment_ids)
      u_BTF += self.param("conv_bias", nn.initializers.zeros, (F,))[None, None].astype(self.dtype)
    u_BTF = nn.silu(u_BTF)

    low_BTR = project(self.step_rank or -(-D // 16), "step_in")(u_BTF).astype(jnp.float32)
    step = Dense(F, kernel_init=_step_kernel_init, bias_init=step_decay.step_bias_init(), name="step_out")
    A_FN = jnp.exp(self.param("A_log", _rates_init, (F, N)))
    y_BTF, final["h_BFN"] = selective_scan(
        u_BTF, nn.softplus(step(low_BTR)), A_FN, project(N, "key")(u_BTF), project(N, "query")(u_BTF),
        past.get("h_BFN"), segment_ids, negative_eigenvalues=self.negative_eigenvalues, backend=self.backend)

    y_BTF += self.param("D", nn.initializers.ones, (F,))[None, None] * u_BTF.astype(jnp.float32)
    y_BTF = y_BTF.astype(self.dtype) * nn.silu(project(F, "gate")(x_BTD))
    return project(D, "out")(y_BTF), final
