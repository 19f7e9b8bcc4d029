"""Linear attention whose state shrinks by one learned factor per head and token.

Per head, with key k_t and value v_t as column vectors, the state is K x V:

    S_t = a_t S_{t-1} + k_t v_t^T        0 < a_t <= 1
    y_t = S_t^T q_t / sqrt(K)

with q, k passed through silu and a_t = exp(-softplus(w_h . x_t + b_h)). The
recurrence itself is pallas_kernels.chunk_recurrence.

Reference: Dao and Gu, "Transformers are SSMs", 2024, the scalar-times-identity case.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from layers.dense import Dense
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, H heads, K key width, V value width, D model.


def half_life_bias(half_life):
  """Returns b such that a = exp(-softplus(b)) halves the state in `half_life` tokens."""
  rate = math.log(2.0) / half_life
  # log(expm1(rate)), without the overflow of a half-life far below one token.
  return rate + math.log(-math.expm1(-rate))


class ScalarDecayAttention(nn.Module):
  """The mixer: project, decay, mix, project back.

  Attributes:
    heads: number of heads H.
    key_dim: K, per head.
    value_dim: V, per head.
    half_life: tokens after which an untrained head has halved its memory.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Decays and state stay in float32.
  """

  heads: int = 4
  key_dim: int = 32
  value_dim: int = 32
  half_life: float = 32.0
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memory."""
    return jnp.zeros((batch, self.heads, self.key_dim, self.value_dim), jnp.float32)

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    if self.half_life <= 0:
      raise ValueError(f"half_life={self.half_life} must be above 0 tokens.")
    def project(width, name):
      return Dense((self.heads, width), use_bias=False, dtype=self.dtype, name=name)

    q_BTHK = nn.silu(project(self.key_dim, "query")(x_BTD))
    k_BTHK = nn.silu(project(self.key_dim, "key")(x_BTD))
    v_BTHV = project(self.value_dim, "value")(x_BTD)
    bias = nn.initializers.constant(half_life_bias(self.half_life))
    decay = Dense(self.heads, kernel_init=nn.initializers.zeros, bias_init=bias, name="decay")
    log_a_BTH = -nn.softplus(decay(x_BTD.astype(jnp.float32)))

    y_BTHV, state = chunk_recurrence(
        q_BTHK, k_BTHK, v_BTHV, log_a_BTH, initial_state=state, segment_ids=segment_ids,
        return_final_state=True, chunk=self.chunk or None, backend=self.backend)
    y_BTD = Dense(x_BTD.shape[-1], inputs=2, use_bias=False, dtype=self.dtype, name="out")(y_BTHV)
    return y_BTD, state
