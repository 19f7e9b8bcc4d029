"""Lightning attention, the mixer of TransNormerLLM: fixed rates of forgetting, slower in deeper layers.

Per head h = 1..H of layer l = 0..L-1, with silu on q, k and v, the state is K x V:

    S_t = e^(-s) S_{t-1} + k_t v_t^T        s = 2^(-8h / H) (1 - l / (L - 1) + 1e-5)
    y_t = SRMS([S_t^T q_t of all heads]) * sigmoid(W_2 W_1 x_t)

SRMS is RMSNorm without gain over all heads at once. With LRPE, q and k carry their positions as
well; the paper does so in the first layer only, which is a node of its own in model.pattern. If H
is no power of two, the rates in between are those of the next one, as in ALiBi.

References: Qin et al., "Scaling TransNormer to 175 Billion Parameters", 2023; Qin et al.,
"Various Lengths, Constant Speed", 2024; Press et al., "Train Short, Test Long", 2022 (rates).
Departures: L = 1 has factor 1 where the formula divides by zero; projections start as Flax
starts them.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from layers import lrpe, segments
from layers.dense import Dense
from layers.norms.rms_norm import rms_norm
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, H heads, K key width, V value width, D model, F features.


def slopes(heads: int):
  """Returns the rates of the first layer, in nats per token, [H]."""
  power = 1 << (heads.bit_length() - 1)
  row = lambda n: 2.0 ** (-8.0 * np.arange(1, n + 1) / n)
  return np.concatenate([row(power), row(2 * power)[::2][:heads - power]]).astype(np.float32)


def log_decays(heads: int, layer=0, layers: int = 1):
  """Returns the log decays of one layer, [H].

  Args:
    heads: H.
    layer: l, from 0; may be traced.
    layers: L.
  """
  return -slopes(heads) * (1 - layer / max(layers - 1, 1) + 1e-5)


class LightningAttention(nn.Module):
  """The mixer: project, bend, decay, mix, normalise, gate, project back.

  Attributes:
    heads: number of heads H.
    key_dim: K, per head.
    value_dim: V, per head.
    layers: L, as many as the model has, and then the mixer finds its l in the stack's context;
      0 gives every layer the rates of the first.
    lrpe_theta: the quickest rate over the slowest, about; 0 leaves positions out.
    gate_rank: width between W_1 and W_2.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Decays and state stay in float32.
  """

  heads: int = 4
  key_dim: int = 32
  value_dim: int = 32
  layers: int = 0
  lrpe_theta: float = 0.0
  gate_rank: int = 16
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  @property
  def uses_context(self) -> bool:
    """Whether the rates depend on the layer."""
    return self.layers > 0

  def init_carry(self, batch: int, tokens: int):
    """Returns {}: of the context only the layer's index is read."""
    del batch, tokens
    return {}

  def init_state(self, batch: int):
    """Returns the empty memory S_BHKV and seen_B, the tokens of the segment so far."""
    width = self.key_dim * (2 if self.lrpe_theta else 1)
    shape = (batch, self.heads, width, self.value_dim)
    return dict(S_BHKV=jnp.zeros(shape, jnp.float32), seen_B=jnp.zeros(batch, jnp.int32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None, context=None):
    """Returns (y_BTD, state), and the context as third where one is given."""
    if self.heads < 1 or self.gate_rank < 1:
      raise ValueError(f"heads={self.heads} and gate_rank={self.gate_rank} must be at least 1.")
    if self.lrpe_theta < 0:
      raise ValueError(f"lrpe_theta={self.lrpe_theta} must be above 0, or 0 for no positions.")
    B, T, D = x_BTD.shape
    state = self.init_state(B) if state is None else state
    log_g_H = log_decays(self.heads)
    if context is not None:
      log_g_H = log_decays(self.heads, context.layer, self.layers)

    def project(width, name):
      dense = Dense((self.heads, width), use_bias=False, dtype=self.dtype, name=name)
      return nn.silu(dense(x_BTD))

    q_BTHK, k_BTHK = project(self.key_dim, "query"), project(self.key_dim, "key")
    v_BTHV = project(self.value_dim, "value")
    ids_BT = jnp.zeros((B, T), jnp.int32) if segment_ids is None else segment_ids
    position_BT, seen_B = segments.positions(ids_BT, state["seen_B"])
    if self.lrpe_theta:
      rate_HK = self.param("rate", lrpe.rates(self.lrpe_theta), (self.heads, self.key_dim))
      q_BTHK, k_BTHK = (lrpe.features(x, position_BT, rate_HK) for x in (q_BTHK, k_BTHK))

    y_BTHV, S_BHKV = chunk_recurrence(
        q_BTHK, k_BTHK, v_BTHV, log_g_H, scale=1.0, initial_state=state["S_BHKV"],
        segment_ids=segment_ids, return_final_state=True, chunk=self.chunk or None,
        backend=self.backend)
    y_BTF = rms_norm(rearrange(y_BTHV, "b t h v -> b t (h v)"))
    low_BTR = Dense(self.gate_rank, use_bias=False, dtype=self.dtype, name="gate_in")(x_BTD)
    y_BTF *= nn.sigmoid(Dense(y_BTF.shape[-1], use_bias=False, dtype=self.dtype, name="gate")(low_BTR))
    y_BTD = Dense(D, use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    state = dict(S_BHKV=S_BHKV, seen_B=seen_B)
    return (y_BTD, state) if context is None else (y_BTD, state, context)
