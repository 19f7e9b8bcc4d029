"""One chunk of one head in operations that Pallas lowers through Triton.

The algebra is that of chunk.py. What differs: no slices of values, sides that are powers of two, at least
16 of them in a matmul, and columns [C,1] that become rows by transposition. For vector decay, pair (i, j)
lies in the lower left quarter of exactly one block of 2s rows, s = 1, 2, 4 .. C/2, and there

    G_i - G_j = (sum of g from the middle of the block to i) + (sum of g after j up to the middle)

so for each s one exponential per row and channel, at most 1, and one masked matmul give all its pairs.

The backward of a kernel is `jax.vjp` of `step`, with rules of its own for matmuls, whose cotangents are
rounded to the dtype of the operands, and for the solve. Triton lowers such rules only once they were
applied, so a forward kernel takes the value of `jax.vjp` too and drops the rest.

Reference: as chunk.py.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence import matrix

# Dims: C rows of a chunk, K key width, V value width, W = 1 or K (width of the gate).


class Places(NamedTuple):
  """When the row and the column of each entry of a C x C tile are processed."""

  row: jax.Array
  col: jax.Array


def step(q_CK, k_CK, v_CV, g_CW, beta_C1, S_KV, segment_C1, carried, *, scale, vector, reverse):
  """Runs one chunk.

  Args:
    q_CK, k_CK, v_CV: rows, in the dtype that matmuls are fed with; zero where there is no token.
    g_CW: log decay in float32, or None.
    beta_C1: write strength in float32; None without the delta rule.
    S_KV: entry state, float32.
    segment_C1: int32 ids, or None.
    carried: id of the segment that the entry state belongs to.
    scale: factor on the queries.
    vector: whether g has one entry per key channel.
    reverse: whether the last row is processed first.

  Returns:
    (o_CV, exit state S_KV), both float32.
  """
  fed = q_CK.dtype
  place = _places(q_CK.shape[0], reverse)
  same_CC, entry_C1, exit_C1, kept = _masks(segment_C1, carried, place)
  enter_CW, leave_CW, total_1W = _decays(g_CW, vector, place)
  q, k = q_CK.astype(jnp.float32), k_CK.astype(jnp.float32)

  if vector:
    rows = (q,) if beta_C1 is None else (q, k)
    mix_CC, *erase_CC = _vector_scores(rows, k, g_CW, place, fed)
  else:
    decay_CC = None if g_CW is None else _pair_decay(g_CW, place)
    mix_CC = _times(decay_CC, _dot(q_CK, k_CK.T))
    erase_CC = [] if beta_C1 is None else [_times(decay_CC, _dot(k_CK, k_CK.T))]
  mix_CC = _keep(place.row >= place.col, same_CC, mix_CC) * scale

  u_CV = v_CV
  if beta_C1 is not None:
    k_in_CK = _where(entry_C1, _times(enter_CW, k)).astype(fed)
    miss_CV = v_CV.astype(jnp.float32) - _dot(k_in_CK, S_KV.astype(fed))
    erase_CC = _keep(place.row > place.col, same_CC, erase_CC[0] * beta_C1)
    u_CV = _solve(erase_CC, beta_C1 * miss_CV, reverse).astype(fed)

  q_in_CK = _where(entry_C1, _times(enter_CW, q) * scale).astype(fed)
  k_out_CK = _where(exit_C1, _times(leave_CW, k)).astype(fed)
  o_CV = _dot(q_in_CK, S_KV.astype(fed)) + _dot(mix_CC.astype(fed), u_CV)
  S_KV = S_KV if g_CW is None else jnp.exp(total_1W).T * S_KV
  return o_CV, _where(kept, S_KV) + _dot(k_out_CK.T, u_CV)


@jax.custom_vjp
def _dot(a, b):
  """matrix.dot that multiplies its cotangent in the dtype of the operands, as Triton demands."""
  return matrix.dot(a, b)


def _dot_forward(a, b):
  return matrix.dot(a, b), (a, b)


def _dot_backward(residuals, dab):
  a, b = residuals
  dab = dab.astype(a.dtype)
  return matrix.dot(dab, b.T).astype(a.dtype), matrix.dot(a.T, dab).astype(b.dtype)


_dot.defvjp(_dot_forward, _dot_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _solve(erase_CC, r_CV, reverse):
  """(I + erase)^-1 r for erase that is zero unless the row comes after the column, in float32."""
  return _solve_forward(erase_CC, r_CV, reverse)[0]


def _solve_forward(erase_CC, r_CV, reverse):
  inverse_CC = _inverse(erase_CC, reverse)
  u_CV = _refined(inverse_CC, erase_CC, r_CV)
  return u_CV, (inverse_CC, erase_CC, u_CV)


def _solve_backward(reverse, residuals, du_CV):
  inverse_CC, erase_CC, u_CV = residuals
  dr_CV = _refined(inverse_CC.T, erase_CC.T, du_CV)
  row, col = _places(u_CV.shape[0], reverse)
  return -_keep(row > col, None, matrix.dot(dr_CV, u_CV.T)), dr_CV


_solve.defvjp(_solve_forward, _solve_backward)


def _refined(inverse_CC, erase_CC, r_CV):
  """inverse r, corrected once: identical keys with strength 1.9 leave errors of 2e-5 without, 2e-6 with it."""
  u_CV = matrix.dot(inverse_CC, r_CV)
  return u_CV + matrix.dot(inverse_CC, r_CV - u_CV - matrix.dot(erase_CC, u_CV))


def _inverse(erase_CC, reverse):
  """matrix.masked_merge in processing order."""
  row, col = _places(erase_CC.shape[0], reverse)
  inverse_CC = (row == col).astype(jnp.float32)
  for p in range((erase_CC.shape[0] - 1).bit_length()):
    corner = ((row >> (p + 1)) == (col >> (p + 1))) & ((row >> p) > (col >> p))
    below_CC = jnp.where(corner, erase_CC, 0.0)
    inverse_CC -= below_CC if p == 0 else matrix.dot(matrix.dot(inverse_CC, below_CC), inverse_CC)
  return inverse_CC


def _decays(g_CW, vector, place):
  """(from the entry to a row, from a row to the exit, log decay of the whole chunk)."""
  if g_CW is None:
    return None, None, None
  return (jnp.exp(_sums(place.row >= place.col, g_CW, vector)),
          jnp.exp(_sums(place.row < place.col, g_CW, vector)), jnp.sum(g_CW, axis=0, keepdims=True))


def _sums(mask_CC, g_CW, vector):
  """Sums of the log decays that each row selects, exact to float32."""
  if vector:
    return _dot(mask_CC.astype(jnp.float32), g_CW)
  return jnp.sum(jnp.where(mask_CC, g_CW.T, 0.0), axis=1, keepdims=True)


def _pair_decay(g_C1, place):
  """exp(G_i - G_j) for i >= j, 0 above; the diagonal is a constant 1."""
  row, col = place
  G_C1 = _sums(row >= col, g_C1, vector=False)
  gap_CC = jnp.where(row > col, G_C1 - G_C1.T, 0.0)
  return jnp.exp(jnp.where(row >= col, gap_CC, -jnp.inf))


def _vector_scores(rows, k, g_CK, place, fed):
  """sum_d x_id k_jd exp(G_id - G_jd) on and below the diagonal for each x of `rows`."""
  row, col = place
  scores = [jnp.where(row == col, jnp.sum(x * k, axis=1, keepdims=True), 0.0) for x in rows]
  for p in range((k.shape[0] - 1).bit_length()):
    late = ((row >> p) & 1) == 1
    near = ((row >> p) == (col >> p)) & jnp.where(late, col <= row, col > row)
    pairs = ((row >> (p + 1)) == (col >> (p + 1))) & ((row >> p) > (col >> p))
    decay_CK = jnp.exp(_sums(near, g_CK, vector=True))
    k_near = (k * decay_CK).astype(fed).T
    scores = [jnp.where(pairs, _dot((x * decay_CK).astype(fed), k_near), s) for x, s in zip(rows, scores)]
  return scores


def _masks(segment_C1, carried, place):
  """Which pairs, entries and exits stay inside one segment; Nones where everything does."""
  if segment_C1 is None:
    return None, None, None, None
  final = segment_C1.shape[0] - 1
  # Values cannot be sliced: the diagonal picks the id of the last row.
  last = jnp.sum(jnp.where((place.row == final) & (place.col == final), segment_C1, 0), dtype=jnp.int32)
  return segment_C1 == segment_C1.T, segment_C1 == carried, segment_C1 == last, carried == last


def _places(C, reverse):
  """Processing order of the rows and of the columns of a C x C tile."""
  places = matrix.iotas((C, C))
  return Places(*(C - 1 - x for x in places)) if reverse else Places(*places)


def _keep(mask, same_CC, x_CC):
  return jnp.where(mask if same_CC is None else mask & same_CC, x_CC, 0.0)


def _where(mask, x):
  return x if mask is None else jnp.where(mask, x, 0.0)


def _times(factor, x):
  return x if factor is None else factor * x
