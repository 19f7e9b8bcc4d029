"""The algebra of one chunk: everything in it that does not need the state of earlier chunks.

With G the inclusive cumulative sum of g inside the chunk, D_ij = exp(G_i - G_j) for i >= j and 0 above:

    mix_ij   = scale sum_d q_id k_jd D_ijd            i >= j: what row i reads from the write of row j
    erase_ij = beta_i sum_d k_id k_jd D_ijd           i > j: what row i overwrites of it (delta rule)
    q_in = scale q exp(G),  k_in = k exp(G)           rows seen from the entry of the chunk
    k_out = k exp(G_C - G),  keep = exp(G_C)          rows and old state seen from its exit

    u  = v,  or with the delta rule  u = (I + erase)^-1 beta (v - k_in S)
    o  = q_in S + mix u,   S' = keep S + k_out^T u

Every factor is at most 1 in magnitude times q or k: exponents are masked before `exp`, never after,
and no quotient of decays is formed. All functions take any leading axes (none inside a kernel) and
columns [..., C, 1] for what is one number per token, so gates are [..., C, 1] or [..., C, K].

Reference: Yang et al., "Parallelizing Linear Transformers with the Delta Rule", 2024, section 3, and
"Gated Linear Attention Transformers with Hardware-Efficient Training", 2024, section 4 (sub-blocks).
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from pallas_kernels import compat
from pallas_kernels.chunk_recurrence.matrix import dot, iotas, lower, solve, transpose
from pallas_kernels.chunk_recurrence.vector_scores import vector_scores

# Dims: C rows of a chunk, K key width, V value width, W = 1 or K (width of the gate).

SUB_BLOCK = 4  # rows whose pairwise vector decays are formed one by one


class Chunk(NamedTuple):
  """A chunk with its gates multiplied in; `k_in` and `erase` are None without the delta rule."""

  q_in_CK: jax.Array
  k_in_CK: jax.Array | None
  k_out_CK: jax.Array
  keep_W1: jax.Array
  mix_CC: jax.Array
  erase_CC: jax.Array | None


def weigh(q_CK, k_CK, g_CW, beta_C1, segment_C1, carried_11, *, scale, sub_block=SUB_BLOCK) -> Chunk:
  """Multiplies gates, write strengths and segment masks into the rows of a chunk.

  Args:
    q_CK, k_CK: queries and keys; their dtype is what matmuls are fed with.
    g_CW: log decay in float32 (float64 for float64 inputs); None for no decay.
    beta_C1: write strength, same dtype as g; None without the delta rule.
    segment_C1: int32 ids; None if the row is one sequence.
    carried_11: id of the segment that the entry state belongs to.
    scale: factor on the queries.
    sub_block: largest block whose vector decays are formed elementwise.

  Returns:
    The `Chunk`; matmul operands in q's dtype, scores in float32 or wider.
  """
  dtype = q_CK.dtype
  wide = jnp.promote_types(dtype, jnp.float32)
  k_in_CK = None
  C = q_CK.shape[-2]
  same_CC, entry_C1, exit_C1, kept_11 = _masks(segment_C1, carried_11)
  if g_CW is None:
    q_in_CK = _where(entry_C1, q_CK.astype(wide) * scale)
    k_out_CK = _where(exit_C1, k_CK)
    keep_W1, _ = compat.vary_alike((jnp.ones((*q_CK.shape[:-2], 1, 1), wide), k_CK))
    if beta_C1 is not None:
      k_in_CK = _where(entry_C1, k_CK)
  else:
    G_CW = cumulative(g_CW)
    last_1W = G_CW[..., C - 1:, :]
    decay_in_CW = _exp_where(entry_C1, G_CW)
    q_in_CK = q_CK.astype(wide) * (scale * decay_in_CW)
    k_out_CK = k_CK.astype(wide) * _exp_where(exit_C1, _off(last_1W - G_CW, C - 1))
    keep_W1 = jnp.exp(transpose(last_1W))
    if beta_C1 is not None:
      k_in_CK = k_CK.astype(wide) * decay_in_CW
  keep_W1 = _where(kept_11, keep_W1)

  erase_CC = None
  vector = g_CW is not None and g_CW.shape[-1] > 1
  if vector:
    rows = (q_CK,) if beta_C1 is None else (q_CK, k_CK)
    scores = vector_scores(rows, k_CK, G_CW, sub_block)
    mix_CC = lower(scores[0] * scale, same_CC, strict=False)
    if beta_C1 is not None:
      erase_CC = lower(scores[1] * beta_C1, same_CC, strict=True)
  elif g_CW is None:
    mix_CC = lower(dot(q_CK, transpose(k_CK)) * scale, same_CC, strict=False)
    if beta_C1 is not None:
      erase_CC = lower(dot(k_CK, transpose(k_CK)) * beta_C1, same_CC, strict=True)
  else:
    # The diagonal is a constant: its two gradients cancel, but not when rounded beside exp(-10).
    gap_CC = lower(G_CW - transpose(G_CW), strict=True)
    decay_CC = jnp.exp(lower(gap_CC, same_CC, strict=False, other=-jnp.inf))
    mix_CC = dot(q_CK, transpose(k_CK)) * (decay_CC * scale)
    if beta_C1 is not None:
      erase_CC = dot(k_CK, transpose(k_CK)) * lower(decay_CC * beta_C1, None, strict=True)

  k_in_CK = None if k_in_CK is None else k_in_CK.astype(dtype)
  return Chunk(q_in_CK.astype(dtype), k_in_CK, k_out_CK.astype(dtype), keep_W1, mix_CC, erase_CC)


def step(chunk: Chunk, v_CV, beta_C1, S_KV):
  """One chunk in the fused form, given the entry state: what a kernel runs with the state at hand.

  Args:
    chunk: from `weigh`.
    v_CV: values, in the dtype that matmuls are fed with.
    beta_C1: write strength; None without the delta rule.
    S_KV: entry state in float32 or wider.

  Returns:
    (o_CV, exit state S_KV), both in the dtype of the state.
  """
  dtype = v_CV.dtype
  u_CV = v_CV
  if beta_C1 is not None:
    miss_CV = v_CV.astype(S_KV.dtype) - dot(chunk.k_in_CK, S_KV.astype(dtype))
    u_CV = solve(chunk.erase_CC, beta_C1 * miss_CV).astype(dtype)
  o_CV = dot(chunk.q_in_CK, S_KV.astype(dtype)) + dot(chunk.mix_CC.astype(dtype), u_CV)
  return o_CV, chunk.keep_W1 * S_KV + dot(transpose(chunk.k_out_CK), u_CV)


def cumulative(g_CW):
  """Inclusive cumulative sum over the rows, as one matmul: exact to float32 and fast everywhere."""
  C = g_CW.shape[-2]
  ones_CC = jnp.tril(jnp.ones((C, C), g_CW.dtype))
  rows = (((1,), (g_CW.ndim - 2,)), ((), ()))
  sums = lax.dot_general(ones_CC, g_CW, rows, precision=lax.Precision.HIGHEST)
  return jnp.moveaxis(sums, 0, -2)


def _masks(segment_C1, carried_11):
  """Which pairs, entries and exits stay inside one segment; Nones where everything does."""
  if segment_C1 is None:
    return None, None, None, None
  last_11 = segment_C1[..., -1:, :]
  return (segment_C1 == transpose(segment_C1), segment_C1 == carried_11,
          segment_C1 == last_11, carried_11 == last_11)


def _off(x_CW, row):
  """x with zeros, that no gradient enters, in one row."""
  rows, _ = iotas(x_CW.shape)
  return jnp.where(rows == row, jnp.zeros_like(x_CW), x_CW)


def _where(mask, x):
  return x if mask is None else jnp.where(mask, x, jnp.zeros_like(x))


def _exp_where(mask, exponent):
  return jnp.exp(exponent if mask is None else jnp.where(mask, exponent, -jnp.inf))
