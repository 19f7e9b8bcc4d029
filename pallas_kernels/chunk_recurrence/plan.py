"""The static half of a call: which rule, which chunk length, which backend.

A `Plan` is hashable, so it is a jit-static argument and the key of the tables of measured defaults.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Dims: B batch, T tokens, H value heads, G key heads, K key width, V value width, C chunk, N chunks.

GROUP = 2**17  # numbers per array: of 2**16 to 2**19 the fastest on 2 AMD EPYC cores


class Inputs(NamedTuple):
  """The arrays of one call, in the one form that every backend accepts.

  Attributes:
    q, k: [B,T,G,K], key heads G dividing the value heads H.
    v: [B,T,H,V].
    g: log decay, None, [B,T,H] or [B,T,H,K], in the dtype of the state.
    beta: write strength [B,T,H] or None, in the dtype of the state.
    state: [B,H,K,V] before the first processed token.
    segments: int32 [B,T] or None. Equal neighbours belong together; no padding ids are left.
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  g: jax.Array | None
  beta: jax.Array | None
  state: jax.Array
  segments: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is known before any value is.

  Attributes:
    decay: "none", "scalar" (one log decay per token and head) or "vector" (one per key channel).
    delta: whether a write first erases what its key recalls.
    packed: whether there are segment ids.
    B, T, H, G, K, V: the sizes of `Inputs`.
    dtype: name of the dtype of q, k, v, o.
    scale: factor on the queries.
    chunk: tokens per chunk, a power of two.
    reverse: whether tokens are taken last to first.
    precision: "mixed" feeds matmuls in `dtype`, "highest" in float32.
    save_states: "save" keeps one state per chunk for the backward, "recompute" keeps none.
    forward, backward: names of the backends.
    group: chunks that the xla backend weighs at once; 0 is all.
  """

  decay: str
  delta: bool
  packed: bool
  B: int
  T: int
  H: int
  G: int
  K: int
  V: int
  dtype: str
  scale: float
  chunk: int
  reverse: bool
  precision: str
  save_states: str
  forward: str
  backward: str
  group: int = 0

  @property
  def chunks(self) -> int:
    """N, the number of chunks, the last one padded."""
    return -(-self.T // self.chunk)

  @property
  def state_dtype(self) -> Any:
    """float32, or float64 when the inputs are float64."""
    return jnp.promote_types(self.dtype, jnp.float32)


def default_chunk(decay: str, delta: bool, K: int, V: int, T: int, dtype: str, platform: str) -> int:
  """Chunk length that trained fastest on `platform`, never above the next power of two of T.

  Measured 2026-11-21 on 2 shared AMD EPYC cores, float32, forward + backward, ms at C = 16/32/64/128:

      B1 T4096 H4 D64    scalar 68/70/52/68     delta 145/142/135/162    vector -/265/272/352
      B8 T512 H4 D64     scalar 69/60/64/74     delta 137/129/138/167    vector+delta -/460/550/575
      B16 T256 H4 D32    scalar 20/16/19/50     delta 58/59/64/106       vector -/134/208/154

  GPU: 128 without and 64 with the delta rule, by the arithmetic of matrix units, not measured.
  TPU: by bundle counts, at least the 16 rows of a tile. bundles.csv has bfloat16; float32 fills twice the
  VMEM, and shorter chunks leave room for more heads, v5e, D128, bundles per 128 tokens and head:

      none, forward / backward        C = 256: 1044 / 2761     C = 128:  818 /  1720
      vector + delta                  C = 128: 7172 / 13978    C = 64:  6308 / 12502
  """
  if platform == "tpu":
    small = max(K, V) <= 128 and dtype != "float32"
    longest = {True: 128 if small else 64, False: 256 if small and not delta else 128}[decay == "vector"]
    return max(min(longest, 1 << max(T - 1, 0).bit_length()), 16)
  if platform != "cpu":
    longest = 64 if delta else 128
  else:
    longest = 64 if decay != "vector" and not delta and max(K, V) > 32 else 32
  return min(longest, 1 << max(T - 1, 0).bit_length())


def default_group(rows: int, width: int, chunk: int, platform: str) -> int:
  """Chunks whose arrays of `rows` = B H times `width` numbers per token stay in the caches of a CPU; 0 is all."""
  return max(1, GROUP // (rows * width * chunk)) if platform == "cpu" else 0
