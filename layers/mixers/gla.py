"""Gated linear attention: every key channel forgets at a rate that the token chooses.

Per head, the state is K x V:

    S_t = Diag(a_t) S_{t-1} + k_t v_t^T        a_t = sigmoid(W_2 W_1 x_t + b)^(1 / tau)
    y_t = RMSNorm(S_t^T q_t / sqrt(K)) * silu(W_gate x_t)

W_1 is D x R with R small. Convolutions, which the paper has not, put a silu on q, k and v.

Reference: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient
Training", 2024. Departures: the norm has a gain; projections start as Flax starts them.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp

from layers import conv_heads
from layers.dense import Dense
from layers.norms.rms_norm import RMSNorm
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, H heads, K key width, V value width, D model, R rank of the gate, F features.

TINY = dict(conv=3, gate_rank=3)


class GLA(nn.Module):
  """The mixer: project, forget by channel, mix, normalise, gate, project back.

  Attributes:
    heads: number of heads H.
    key_dim: K, per head.
    value_dim: V, per head.
    gate_rank: R.
    tau: the gate's logit normaliser; larger forgets more slowly.
    conv: width of the convolutions, in tokens; 0 leaves them out.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Decays and state stay in float32.
  """

  heads: int = 4
  key_dim: int = 32
  value_dim: int = 64
  gate_rank: int = 16
  tau: float = 16.0
  conv: int = 0
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memory S_BHKV and, with convolutions, the inputs before the first."""
    H, K, V = self.heads, self.key_dim, self.value_dim
    past = conv_heads.init_state(batch, self.conv, self.dtype, dict(query=H * K, key=H * K, value=H * V))
    return dict(past, S_BHKV=jnp.zeros((batch, H, K, V), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    conv_heads.check(self.conv)
    if self.tau <= 0 or self.gate_rank < 1:
      raise ValueError(f"tau={self.tau} must be above 0 and gate_rank={self.gate_rank} at least 1.")
    past = state or {}

    def project(name, width):
      return conv_heads.project(
          x_BTD, name, self.heads, width, conv=self.conv, past=past, segment_ids=segment_ids,
          dtype=self.dtype, activation=nn.silu if self.conv else lambda y: y)

    q_BTHK, past_q = project("query", self.key_dim)
    k_BTHK, past_k = project("key", self.key_dim)
    v_BTHV, past_v = project("value", self.value_dim)
    low_BTR = Dense(self.gate_rank, use_bias=False, name="decay_in")(x_BTD.astype(jnp.float32))
    logit_BTF = Dense(self.heads * self.key_dim, name="decay_out")(low_BTR)
    log_a_BTHK = rearrange(nn.log_sigmoid(logit_BTF) / self.tau, "b t (h k) -> b t h k", h=self.heads)

    y_BTHV, S_BHKV = chunk_recurrence(
        q_BTHK, k_BTHK, v_BTHV, log_a_BTHK, initial_state=past.get("S_BHKV"),
        segment_ids=segment_ids, return_final_state=True, chunk=self.chunk or None,
        backend=self.backend)
    y_BTF = rearrange(RMSNorm(eps=1e-5, name="norm")(y_BTHV), "b t h v -> b t (h v)")
    y_BTF *= nn.silu(Dense(y_BTF.shape[-1], use_bias=False, dtype=self.dtype, name="gate")(x_BTD))
    y_BTD = Dense(x_BTD.shape[-1], use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    return y_BTD, dict(**past_q, **past_k, **past_v, S_BHKV=S_BHKV)
