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
import jax.numpy as jnp
from jax import lax

# Dims: C rows of a chunk, K key width, V value width, W = 1 or K (width of the gate).

SUB_BLOCK = 16  # rows whose pairwise vector decays are formed one by one


class Chunk(NamedTuple):
  """A chunk with its gates multiplied in; `k_in` and `erase` are None without the delta rule."""

  q_in_CK: jax.Array
  k_in_CK: jax.Array | None
  k_out_CK: jax.Array
  keep_W1: jax.Array
  mix_CC: jax.Array
  erase_CC: jax.Array | None


def dot(a, b):
  """a @ b with at least float32 accumulation; float32 operands are never rounded to bfloat16."""
  precision = lax.Precision.HIGHEST if a.dtype.itemsize >= 4 else lax.Precision.DEFAULT
  return jnp.matmul(a, b, precision=precision,
                    preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def transpose(x):
  return jnp.swapaxes(x, -1, -2)


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
    keep_W1 = jnp.ones((*q_CK.shape[:-2], 1, 1), wide)
    if beta_C1 is not None:
      k_in_CK = _where(entry_C1, k_CK)
  else:
    G_CW = cumulative(g_CW)
    last_1W = G_CW[..., C - 1:, :]
    decay_in_CW = _exp_where(entry_C1, G_CW)
    q_in_CK = q_CK.astype(wide) * (scale * decay_in_CW)
    k_out_CK = k_CK.astype(wide) * _exp_where(exit_C1, last_1W - G_CW)
    keep_W1 = jnp.exp(transpose(last_1W))
    if beta_C1 is not None:
      k_in_CK = k_CK.astype(wide) * decay_in_CW
  keep_W1 = _where(kept_11, keep_W1)

  erase_CC = None
  vector = g_CW is not None and g_CW.shape[-1] > 1
  if vector:
    rows = q_CK[..., None, :, :]
    if beta_C1 is not None:
      rows = jnp.stack([q_CK, k_CK], axis=-3)
    scores = vector_scores(rows, k_CK, G_CW, sub_block)
    mix_CC = _lower(scores[..., 0, :, :] * scale, same_CC, strict=False)
    if beta_C1 is not None:
      erase_CC = _lower(scores[..., 1, :, :] * beta_C1, same_CC, strict=True)
  elif g_CW is None:
    mix_CC = _lower(dot(q_CK, transpose(k_CK)) * scale, same_CC, strict=False)
    if beta_C1 is not None:
      erase_CC = _lower(dot(k_CK, transpose(k_CK)) * beta_C1, same_CC, strict=True)
  else:
    gap_CC = G_CW - transpose(G_CW)
    decay_CC = jnp.exp(_lower(gap_CC, same_CC, strict=False, other=-jnp.inf))
    mix_CC = dot(q_CK, transpose(k_CK)) * (decay_CC * scale)
    if beta_C1 is not None:
      erase_CC = dot(k_CK, transpose(k_CK)) * _lower(decay_CC * beta_C1, None, strict=True)

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
  """Inclusive cumulative sum over the rows, as a matmul: exact to float32, and fast everywhere."""
  C = g_CW.shape[-2]
  ones_CC = jnp.broadcast_to(jnp.tril(jnp.ones((C, C), g_CW.dtype)), (*g_CW.shape[:-2], C, C))
  return dot(ones_CC, g_CW)


def vector_scores(x_MCK, k_CK, G_CK, sub_block=SUB_BLOCK):
  """sum_d x_id k_jd exp(G_id - G_jd) for i >= j, zero above, for each of the M row sets.

  A block is cut in halves. Its lower left quarter is a matmul of x exp(G_i - G_n) and k exp(G_n - G_j)
  with n the first row of the lower half, so both exponents are <= 0; its two diagonal quarters are
  cut again, down to `sub_block` rows, which are formed entry by entry.
  """
  C = k_CK.shape[-2]
  if C <= sub_block:
    return _pairwise(x_MCK, k_CK, G_CK)
  halves = lambda x: x.reshape(*x.shape[:-2], 2, C // 2, x.shape[-1])
  k_2CK, G_2CK, x_M2CK = halves(k_CK), halves(G_CK), halves(x_MCK)
  x_2MCK = jnp.swapaxes(x_M2CK, -3, -4)
  diagonal = vector_scores(x_2MCK, k_2CK, G_2CK, sub_block)

  # The product does not depend on the reference row, so neither does its gradient.
  middle_1K = lax.stop_gradient(G_2CK[..., 1, :1, :])
  x_low = x_M2CK[..., 1, :, :] * jnp.exp(G_2CK[..., 1, :, :] - middle_1K)[..., None, :, :]
  k_high = k_2CK[..., 0, :, :] * jnp.exp(middle_1K - G_2CK[..., 0, :, :])
  k_high = jnp.broadcast_to(k_high[..., None, :, :], x_low.shape)
  corner = dot(x_low.astype(k_CK.dtype), transpose(k_high.astype(k_CK.dtype)))
  return _assemble(diagonal[..., 0, :, :, :], corner, diagonal[..., 1, :, :, :])


def solve(erase_CC, r_CV):
  """(I + erase)^-1 r for strictly lower triangular `erase`, in the dtype of `erase`."""
  return _solve(erase_CC, r_CV)


@jax.custom_vjp
def _solve(erase_CC, r_CV):
  return dot(unit_lower_inverse(erase_CC), r_CV)


def _solve_forward(erase_CC, r_CV):
  inverse_CC = unit_lower_inverse(erase_CC)
  u_CV = dot(inverse_CC, r_CV)
  return u_CV, (inverse_CC, u_CV)


def _solve_backward(residuals, du_CV):
  # A rule on the solve multiplies by the inverse once; differentiating the inverse would do it twice.
  inverse_CC, u_CV = residuals
  dr_CV = dot(transpose(inverse_CC), du_CV)
  return -_lower(dot(dr_CV, transpose(u_CV)), None, strict=True), dr_CV


_solve.defvjp(_solve_forward, _solve_backward)


def unit_lower_inverse(a_CC, base=16):
  """(I + a)^-1 for strictly lower triangular a, by merging inverses of diagonal blocks.

  With X, Y the inverses of two neighbouring blocks and a_21 the block below the first, the merged
  inverse has -Y a_21 X in its corner. Every intermediate is an entry of a true inverse, and powers of
  a never appear: the product (I - a)(I + a^2)(I + a^4)... is 20 orders of magnitude off on repeated keys.
  """
  C = a_CC.shape[-1]
  if C <= base:
    return _masked_merge(a_CC)
  h = C // 2
  inverse = unit_lower_inverse(jnp.stack([a_CC[..., :h, :h], a_CC[..., h:, h:]], axis=-3), base)
  x, y = inverse[..., 0, :, :], inverse[..., 1, :, :]
  return _assemble(x, -dot(dot(y, a_CC[..., h:, :h]), x), y)


def _masked_merge(a_CC):
  """The same merge on the whole matrix at once: masks instead of slices, for small or tiled blocks."""
  row, col = _iotas(a_CC.shape)
  inverse_CC = (row == col).astype(a_CC.dtype)
  for p in range((a_CC.shape[-1] - 1).bit_length()):
    corner = ((row >> (p + 1)) == (col >> (p + 1))) & ((row >> p) > (col >> p))
    below_CC = jnp.where(corner, a_CC, 0.0)
    # At p = 0 the inverse is still the identity.
    inverse_CC -= below_CC if p == 0 else dot(dot(inverse_CC, below_CC), inverse_CC)
  return inverse_CC


def _pairwise(x_MCK, k_CK, G_CK):
  row, col = _iotas((*G_CK.shape[:-1], G_CK.shape[-2]))
  gap_CCK = G_CK[..., :, None, :] - G_CK[..., None, :, :]
  decay_CCK = jnp.exp(jnp.where((row >= col)[..., None], gap_CCK, -jnp.inf))
  decayed_CCK = k_CK[..., None, :, :] * decay_CCK
  return jnp.sum(x_MCK[..., :, None, :] * decayed_CCK[..., None, :, :, :], axis=-1)


def _assemble(upper_left, lower_left, lower_right):
  top = jnp.concatenate([upper_left, jnp.zeros_like(upper_left)], axis=-1)
  return jnp.concatenate([top, jnp.concatenate([lower_left, lower_right], axis=-1)], axis=-2)


def _iotas(shape):
  rank = len(shape)
  return (lax.broadcasted_iota(jnp.int32, shape, rank - 2),
          lax.broadcasted_iota(jnp.int32, shape, rank - 1))


def _lower(x_CC, same_CC, *, strict, other=0.0):
  row, col = _iotas(x_CC.shape)
  mask = row > col if strict else row >= col
  return jnp.where(mask if same_CC is None else mask & same_CC, x_CC, other)


def _masks(segment_C1, carried_11):
  """Which pairs, entries and exits stay inside one segment; Nones where everything does."""
  if segment_C1 is None:
    return None, None, None, None
  last_11 = segment_C1[..., -1:, :]
  return (segment_C1 == transpose(segment_C1), segment_C1 == carried_11,
          segment_C1 == last_11, carried_11 == last_11)


def _where(mask, x):
  return x if mask is None else jnp.where(mask, x, jnp.zeros_like(x))


def _exp_where(mask, exponent):
  return jnp.exp(exponent if mask is None else jnp.where(mask, exponent, -jnp.inf))
