"""Mamba-2: a state space with one decay per head and token, read and written by the token.

Per head of width V, with x, B, C after a causal convolution with bias and silu, the
state is K x V; B and C are shared by the H / G heads of a group:

    S_t = exp(-A_h d_t) S_{t-1} + d_t B_t x_t^T        d_t = softplus(u_h . in_t + b_h)
    y_t = RMSNorm((S_t^T C_t + D_h x_t) * silu(z_t))        z_t = W_gate in_t

The norm runs over all H V channels. C, B and d x are the queries, keys and values of
pallas_kernels.chunk_recurrence, without its scale.

Reference: Dao and Gu, "Transformers are SSMs", 2024, section 7. Departures: the one
input projection is five; the norm is one also where there are groups; filters start with
mean square 1 / W and convolution biases at zero; projections start as Flax starts them.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp

from layers import conv_heads, step_decay
from layers.dense import Dense
from layers.norms.rms_norm import RMSNorm
from layers.short_conv import ShortConv
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, H heads, G groups, K state width, V head width, D model, F features.

TINY = dict(conv=3, groups=1)


class Mamba2(nn.Module):
  """The mixer: project, convolve, run the state space, skip, gate, normalise, project back.

  Attributes:
    heads: number of heads H; H V is commonly twice the model's width.
    groups: number of groups G that have a B and C of their own, a divisor of heads.
    key_dim: K, the state's width per head.
    value_dim: V, the head's width.
    conv: width of the convolution, in tokens; 0 leaves it out.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Decays, steps and state stay in float32.
  """

  heads: int = 4
  groups: int = 1
  key_dim: int = 64
  value_dim: int = 32
  conv: int = 4
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memory S_BHKV and, with a convolution, the inputs before the first."""
    H, K, V = self.heads, self.key_dim, self.value_dim
    past = conv_heads.init_state(batch, self.conv, self.dtype, dict(conv=H * V + 2 * self.groups * K))
    return dict(past, S_BHKV=jnp.zeros((batch, H, K, V), jnp.float32))

  def _convolve(self, line_BTF, past, segment_ids):
    """Returns (silu of the convolution, its state as a dict)."""
    if not self.conv:
      return nn.silu(line_BTF), {}
    line_BTF, last_BPF = ShortConv(self.conv, name="conv")(line_BTF, past.get("conv"), segment_ids)
    bias_F = self.param("conv_bias", nn.initializers.zeros, line_BTF.shape[-1:])
    return nn.silu(line_BTF + bias_F[None, None].astype(self.dtype)), dict(conv=last_BPF)

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    conv_heads.check(self.conv)
    H, G, K, V = self.heads, self.groups, self.key_dim, self.value_dim
    if G < 1 or H % G:
      raise ValueError(f"groups={G} must be at least 1 and divide heads={H}.")
    past = state or {}

    def project(width, name):
      return Dense(width, use_bias=False, dtype=self.dtype, name=name)(x_BTD)

    parts = project(H * V, "value"), project(G * K, "key"), project(G * K, "query")
    line_BTF, final = self._convolve(jnp.concatenate(parts, axis=-1), past, segment_ids)
    parts = jnp.split(line_BTF, [H * V, H * V + G * K], axis=-1)
    v_BTHV, k_BTGK, q_BTGK = (
        rearrange(part, "b t (h k) -> b t h k", h=h) for part, h in zip(parts, (H, G, G)))

    log_rate_H = self.param("A_log", step_decay.log_rate_init(1.0, 16.0), (H,))
    skip_H = self.param("D", nn.initializers.ones, (H,))
    step = Dense(H, bias_init=step_decay.step_bias_init(), name="decay")
    z_BTH = step(x_BTD.astype(jnp.float32))
    dt_BTH1 = nn.softplus(z_BTH)[..., None]
    y_BTHV, final["S_BHKV"] = chunk_recurrence(
        q_BTGK, k_BTGK, (dt_BTH1 * v_BTHV).astype(self.dtype),
        step_decay.log_decay(z_BTH, log_rate_H[None, None]), scale=1.0,
        initial_state=past.get("S_BHKV"), segment_ids=segment_ids, return_final_state=True,
        chunk=self.chunk or None, backend=self.backend)

    y_BTHV += skip_H[None, None, :, None].astype(self.dtype) * v_BTHV
    y_BTF = rearrange(y_BTHV, "b t h v -> b t (h v)") * nn.silu(project(H * V, "gate"))
    y_BTF = RMSNorm(eps=1e-5, name="norm")(y_BTF)
    return Dense(x_BTD.shape[-1], use_bias=False, dtype=self.dtype, name="out")(y_BTF), final
