"""Simple gated linear attention: scalar decay with short convolutions and an output gate.

Per head, after a causal convolution of width W and silu on q, k and v:

    S_t = a_t S_{t-1} + k_t v_t^T        a_t = sigmoid(w_h . x_t + b_h)^(1 / tau)
    y_t = RMSNorm(S_t^T q_t / sqrt(K)) * silu(W_gate x_t)

References: Yang et al., "Gated Linear Attention Transformers with
Hardware-Efficient Training", 2024 (gate, norm, logit normaliser tau = 16);
Sun et al., "You Only Cache Once", 2024 (scalar gate). The convolutions are those
of Gu and Dao, "Mamba", 2023. Departure: b_h starts at a given half-life.
"""

import math

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp

from layers.dense import Dense
from layers.norms.rms_norm import RMSNorm
from layers.short_conv import ShortConv
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, H heads, K key width, V value width, D model, F features.

MAX_CONV = 64  # tokens; each is a multiplication of its own in the program


def decay_bias(half_life, tau):
  """Returns b such that sigmoid(b)^(1 / tau) halves the state in `half_life` tokens."""
  log_sigmoid = -tau * math.log(2.0) / half_life
  return log_sigmoid - math.log(-math.expm1(log_sigmoid))


class SimpleGatedLinearAttention(nn.Module):
  """The mixer: project, convolve, decay, mix, normalise, gate, project back.

  Attributes:
    heads: number of heads H.
    key_dim: K, per head.
    value_dim: V, per head.
    conv: width of the convolutions, in tokens; 0 leaves them out.
    half_life: tokens after which an untrained head has halved its memory.
    tau: the gate's logit normaliser; larger forgets more slowly.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Decays and state stay in float32.
  """

  heads: int = 4
  key_dim: int = 32
  value_dim: int = 32
  conv: int = 4
  half_life: float = 64.0
  tau: float = 16.0
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memory {"S_BHKV"} and, with convolutions, the inputs before the first."""
    widths = dict(q=self.key_dim, k=self.key_dim, v=self.value_dim)
    state = dict(S_BHKV=jnp.zeros((batch, self.heads, self.key_dim, self.value_dim), jnp.float32))
    for name, width in widths.items():
      if self.conv:
        past = (batch, self.conv - 1, self.heads * width)
        state[name] = jnp.zeros(past, self.dtype)
    return state

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    if self.half_life <= 0 or self.tau <= 0:
      raise ValueError(f"half_life={self.half_life} tokens and tau={self.tau} must be above 0.")
    if self.conv > MAX_CONV:
      raise ValueError(f"conv={self.conv} tokens must be at most {MAX_CONV}; the convolution is a short one.")
    past, final = state or {}, {}

    def project(width, name):
      y_BTF = Dense(self.heads * width, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
      if self.conv:
        y_BTF, final[name[0]] = ShortConv(self.conv, name=f"{name}_conv")(
            y_BTF, past.get(name[0]), segment_ids)
      return rearrange(nn.silu(y_BTF), "b t (h k) -> b t h k", h=self.heads)

    q_BTHK, k_BTHK = project(self.key_dim, "query"), project(self.key_dim, "key")
    v_BTHV = project(self.value_dim, "value")
    bias = nn.initializers.constant(decay_bias(self.half_life, self.tau))
    decay = Dense(self.heads, kernel_init=nn.initializers.zeros, bias_init=bias, name="decay")
    log_a_BTH = nn.log_sigmoid(decay(x_BTD.astype(jnp.float32))) / self.tau

    y_BTHV, final["S_BHKV"] = chunk_recurrence(
        q_BTHK, k_BTHK, v_BTHV, log_a_BTH, initial_state=past.get("S_BHKV"),
        segment_ids=segment_ids, return_final_state=True, chunk=self.chunk or None,
        backend=self.backend)
    y_BTHV = RMSNorm(name="norm")(y_BTHV)
    gate_BTF = Dense(self.heads * self.value_dim, use_bias=False, dtype=self.dtype,
                        name="gate")(x_BTD)
    y_BTF = rearrange(y_BTHV, "b t h v -> b t (h v)") * nn.silu(gate_BTF)
    y_BTD = Dense(x_BTD.shape[-1], use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    return y_BTD, final
