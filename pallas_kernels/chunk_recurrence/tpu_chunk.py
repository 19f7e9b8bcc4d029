"""One chunk of a few heads, forward and backward, in operations that a TPU's Mosaic compiler has.

The algebra is that of chunk.py; what differs is what a TPU makes cheap. All arrays carry the heads of a
grid step as leading axis, so that every line issues work for all of them and none waits for a matmul.
Scalar factors multiply results of matmuls (rows), not operands, and everything is masks on whole C x C
tiles. `reverse` renames positions: row r is at position C - 1 - r, and nothing else changes.

The gradients are written out. With cotangents dO of the output and dS of the exit state:

    dU = scale mix^T dO + k_out dS            without the delta rule dv = dU, else
    r = (I + erase)^-T dU,  dv = beta r,  derase = -strict_lower(r u^T),  dk_in = -dv S^T
    dmix = lower(dO u^T),   dS_0 = keep dS + q_in^T dO - k_in^T dv
    dG = q dq + k dk_row - k dk_col           dk_row: k as the reading row, dk_col: as the written one

Reference: as chunk.py; dG is the identity of Yang et al., "Gated Linear Attention Transformers with
Hardware-Efficient Training", 2024, appendix C, kept inside a chunk and in float32.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence import tpu_scores
from pallas_kernels.chunk_recurrence.tpu_matrix import dot, inverse, Positions

# Dims: H heads of a grid step, C rows of a chunk, K key width, V value width, W = 1 or K.

LANES = 128
LOG2_E = math.log2(math.e)


class Rows(NamedTuple):
  """What one grid step reads, one entry per value head."""

  q_HCK: jax.Array
  k_HCK: jax.Array
  v_HCV: jax.Array


class Gates(NamedTuple):
  """Gates and segment masks of a chunk; None stands for a factor of one.

  Attributes:
    enter: decay from the entry of the chunk to a row, [H,C,1], [H,C,K] or [1,C,1].
    leave: decay from a row to the exit of the chunk, alike.
    keep: decay over the chunk, [H,1,1], [H,K,1] or [1,1,1].
    pairs_HCC: decay between two rows, 0 above the diagonal; None unless the decay is scalar.
    levels: factors of the pairs of a vector decay, see tpu_scores.py; else None.
    beta_HC1: write strength.
    mask_1CC: pairs on and below the diagonal, of one segment.
  """

  enter: jax.Array | None
  leave: jax.Array | None
  keep: jax.Array | None
  pairs_HCC: jax.Array | None
  levels: tuple[jax.Array, ...] | None
  beta_HC1: jax.Array | None
  mask_1CC: jax.Array


class Gradients(NamedTuple):
  """Cotangents in float32; gates are None where there are none."""

  q_HCK: jax.Array
  k_HCK: jax.Array
  v_HCV: jax.Array
  gate: jax.Array | None  # [H,C,1] of the cumulative decay, or [H,C,K] of the decay itself
  gate_exit_H11: jax.Array | None  # what belongs to the last row of `gate` if that is cumulative
  beta_HC1: jax.Array | None
  S_HKV: jax.Array


def gates(cumulative_HC, g_HCK, beta_HC, segment_4C, place: Positions) -> Gates:
  """Turns gates and segments into factors.

  Args:
    cumulative_HC: inclusive sum of a scalar log decay inside the chunk, or None.
    g_HCK: vector log decay, or None.
    beta_HC: write strength, or None.
    segment_4C: rows (ids, 1 where the row belongs to the entry state, 1 where it belongs to the exit,
      1 if entry and exit agree) in float32, or None.
    place: positions of the rows of the chunk.
  """
  rows = []
  mask = place.lower_1CC
  entry = out = kept = None
  if segment_4C is not None:
    rows.append(segment_4C)
  if cumulative_HC is not None:
    last_H1 = cumulative_HC[:, place.exit:place.exit + 1]
    rows += [cumulative_HC, jnp.exp(cumulative_HC), jnp.exp(last_H1 - cumulative_HC)]
  if beta_HC is not None:
    rows.append(beta_HC)
  columns = _columns(rows)
  if segment_4C is not None:
    (ids, entry, out, _), columns = columns[0], columns[1:]
    entry, out, kept = entry[None], out[None], segment_4C[3:4, :1][None]
    mask = mask & (ids[None] == segment_4C[None, :1])

  enter, leave, keep, pairs, levels = entry, out, kept, None, None
  if cumulative_HC is not None:
    G, enter, leave = map(jnp.stack, columns[:3])
    columns = columns[3:]
    pairs = _pair_decays(G * LOG2_E, (cumulative_HC * LOG2_E)[:, None, :], mask, place)
    keep = jnp.exp(last_H1)[:, :, None]
  elif g_HCK is not None:
    levels, enter, leave, total_H1K = tpu_scores.decays(g_HCK, place)
    keep = jnp.exp(jnp.swapaxes(total_H1K, 1, 2))
  if segment_4C is not None and (pairs is not None or levels is not None):
    enter, leave, keep = enter * entry, leave * out, keep * kept
  beta = jnp.stack(columns[0]) if beta_HC is not None else None
  return Gates(enter, leave, keep, pairs, levels, beta, mask)


def forward(rows: Rows, gate: Gates, S_HKV, place: Positions, scale: float, fed: Any):
  """One chunk.

  Args:
    rows, gate: the chunk.
    S_HKV: entry state, float32.
    place: positions of the rows of the chunk.
    scale: factor on the queries.
    fed: dtype that matmuls are fed with.

  Returns:
    (o_HCV, exit state), both float32.
  """
  q, k, v = rows
  if gate.beta_HC1 is None and gate.levels is None:
    u, near = v, _read_strips(rows, gate, place, fed)
  else:
    mix, u, _ = _write(rows, gate, S_HKV, place, fed)
    near = dot("nn", mix, u, fed)
  o = _after(gate, dot("nn", _before(gate, q, gate.enter), S_HKV, fed), gate.enter)
  return scale * (o + near), exit_state(k, u, gate, S_HKV, fed)


def exit_state(k_HCK, u_HCV, gate, S_HKV, fed):
  """keep S + k_out^T u."""
  added = dot("tn", _before(gate, k_HCK, gate.leave), _after(gate, u_HCV, gate.leave), fed)
  return _times(gate.keep, S_HKV) + added


def states_only(rows: Rows, gate: Gates, S_HKV, place: Positions, fed: Any):
  """The exit state without the output; arguments as `forward`."""
  u = rows.v_HCV
  if gate.beta_HC1 is not None:
    _, u, _ = _write(rows, gate, S_HKV, place, fed)
  return exit_state(rows.k_HCK, u, gate, S_HKV, fed)


def backward(rows: Rows, gate: Gates, S_HKV, do_HCV, dS_HKV, place: Positions, scale: float, fed: Any):
  """Cotangents of one chunk.

  Args:
    rows, gate, S_HKV, place, scale, fed: as `forward`.
    do_HCV: cotangent of the output.
    dS_HKV: cotangent of the exit state, float32.
  """
  q, k, v = rows
  mix, u, solved = _write(rows, gate, S_HKV, place, fed)
  du = scale * dot("tn", mix, do_HCV, fed)
  du += _after(gate, dot("nn", _before(gate, k, gate.leave), dS_HKV, fed), gate.leave)
  dk_out = _times(gate.leave, dot("nt", u, dS_HKV, fed))
  dmix = jnp.where(gate.mask_1CC, dot("nt", do_HCV, u, fed), 0.0)
  dq = _times(gate.enter, dot("nt", do_HCV, S_HKV, fed))
  dS = scale * dot("tn", _before(gate, q, gate.enter), _after(gate, do_HCV, gate.enter), fed)
  dS += _times(gate.keep, dS_HKV)

  derase = dbeta = dk_in = None
  dv = du
  if solved is not None:
    inverse_HCC, erase_HCC, miss = solved
    r = dot("tn", inverse_HCC, du, fed)
    dv = gate.beta_HC1 * r
    dk_in = -_times(gate.enter, dot("nt", dv, S_HKV, fed))
    dS -= dot("tn", _before(gate, k, gate.enter), _after(gate, dv, gate.enter), fed)
    derase = jnp.where((place.distance_1CC > 0) & gate.mask_1CC, dot("nt", r, u, fed), 0.0)
    dbeta = (jnp.sum(r * miss, axis=-1, keepdims=True)
             - jnp.sum(derase * erase_HCC, axis=-1, keepdims=True))
    derase = derase * -gate.beta_HC1

  gated = gate.pairs_HCC is not None or gate.levels is not None
  dq_near, dk_row, dk_col = _score_gradients(rows, gate, dmix, derase, place, scale, fed)
  dq = scale * (dq + dq_near)
  if dk_in is not None:
    dk_row = dk_in if dk_row is None else dk_row + dk_in
  dgate = exit_gate = None
  if gated:
    # Gates do not touch diagonal scores nor the write of the last row: their gradients cancel, but
    # not when rounded beside gradients as small as exp(-10), so they join dq and dk afterwards.
    q_wide, k_wide = q.astype(jnp.float32), k.astype(jnp.float32)
    out = jnp.where((place.row_C1 == q.shape[1] - 1)[None], 0.0, k_wide * dk_out)
    dgate = q_wide * dq - k_wide * dk_col - out
    if dk_row is not None:
      dgate += k_wide * dk_row
    kept = _times(gate.keep, S_HKV * dS_HKV)
    if gate.levels is None:
      dgate = jnp.sum(dgate, axis=-1, keepdims=True)
      exit_gate = _sum(kept) + _sum(out)
    else:
      total_H1K = (jnp.swapaxes(jnp.sum(kept, axis=-1, keepdims=True), 1, 2)
                   + jnp.sum(out, axis=-2, keepdims=True))
      dgate = tpu_scores.sum_to_exit(dgate, place) + total_H1K
    own_HC1 = scale * jnp.sum(do_HCV.astype(jnp.float32) * u.astype(jnp.float32), axis=-1, keepdims=True)
    dq += own_HC1 * k_wide
    dk_col += own_HC1 * q_wide
  dk_col += dk_out
  dk = dk_col if dk_row is None else dk_col + dk_row
  return Gradients(dq, dk, dv, dgate, exit_gate, dbeta, dS)


def _write(rows, gate, S_HKV, place, fed):
  """(mix, u, (inverse, erase / beta, v - k_in S) or None): what the rows read and write."""
  q, k, v = rows
  mix, erase = _scores(q, k, gate, place, fed)
  if erase is None:
    return mix, v, None
  miss = v.astype(jnp.float32) - _after(
      gate, dot("nn", _before(gate, k, gate.enter), S_HKV, fed), gate.enter)
  inverse_HCC = inverse(gate.beta_HC1 * erase, place, fed)
  u = dot("nn", inverse_HCC, gate.beta_HC1 * miss, fed)
  return mix, u, (inverse_HCC, erase, miss)


def _scores(q, k, gate, place, fed):
  """(mix without scale, erase without beta): weighted q k^T on and k k^T below the diagonal."""
  strict = place.distance_1CC > 0
  if gate.levels is not None:
    mix, erase = tpu_scores.scores(q, k, gate.levels, gate.beta_HC1 is not None, place, fed)
    mix = jnp.where(gate.mask_1CC, mix, 0.0)
    return mix, None if erase is None else jnp.where(strict & gate.mask_1CC, erase, 0.0)
  mix, erase = dot("nt", q, k, fed), None
  if gate.pairs_HCC is None:
    mix = jnp.where(gate.mask_1CC, mix, 0.0)
  else:
    mix = mix * gate.pairs_HCC
  if gate.beta_HC1 is not None:
    erase = dot("nt", k, k, fed)
    if gate.pairs_HCC is not None:
      erase = erase * gate.pairs_HCC
    erase = jnp.where(strict & gate.mask_1CC, erase, 0.0)
  return mix, erase


def _score_gradients(rows, gate, dmix, derase, place, scale, fed):
  """(dq without scale, dk_row or None, dk_col) of `_scores`, without the diagonal if there are gates."""
  q, k, _ = rows
  if gate.levels is not None:
    return tpu_scores.score_gradients(q, k, gate.levels, dmix, derase, place, scale, fed)
  if gate.pairs_HCC is not None:
    dmix = jnp.where(place.distance_1CC > 0, dmix * gate.pairs_HCC, 0.0)
  dq, dk_row = dot("nn", dmix, k, fed), None
  dk_col = scale * dot("tn", dmix, q, fed)
  if derase is not None:
    derase = _times(gate.pairs_HCC, derase)
    dk_row = dot("nn", derase, k, fed)
    dk_col += dot("tn", derase, k, fed)
  return dq, dk_row, dk_col


def _read_strips(rows, gate, place, fed):
  """mix v in strips of rows, each against the columns that are not wholly in its future."""
  out = []
  for own, seen in _strips(place):
    scores = dot("nt", rows.q_HCK[:, own], rows.k_HCK[:, seen], fed)
    if gate.pairs_HCC is None:
      mix = jnp.where(gate.mask_1CC[:, own, seen], scores, 0.0)
    else:
      mix = scores * gate.pairs_HCC[:, own, seen]
    out.append(dot("nn", mix, rows.v_HCV[:, seen], fed))
  return jnp.concatenate(out, axis=1)


def _pair_decays(row_HC1, col_H1C, mask_1CC, place):
  """2^(row - col) where the mask holds, else 0."""
  C, strips = mask_1CC.shape[-1], []
  for own, seen in _strips(place):
    gap = jnp.where(mask_1CC[:, own, seen], row_HC1[:, own] - col_H1C[:, :, seen], -jnp.inf)
    part = jnp.exp2(gap)
    zeros = [jnp.zeros((*part.shape[:2], C - part.shape[2]), part.dtype)] if part.shape[2] < C else []
    strips.append(jnp.concatenate([*zeros, part] if place.reverse else [part, *zeros], axis=2))
  return jnp.concatenate(strips, axis=1)


def _strips(place):
  """(rows, columns not wholly in their future) of every strip of a tile of lanes."""
  C = place.row_C1.shape[0]
  tile = min(C, LANES)
  return [(slice(i, i + tile), slice(i, C) if place.reverse else slice(0, i + tile))
          for i in range(0, C, tile)]


def _sum(x_HKV):
  return jnp.sum(jnp.sum(x_HKV, axis=-1, keepdims=True), axis=-2, keepdims=True)


def _before(gate, x, factor):
  """The part of a row factor that must be multiplied in before a matmul: what differs per channel."""
  return x.astype(jnp.float32) * factor if gate.levels is not None else x


def _after(gate, y, factor):
  """The part that may wait until after it: one factor per row."""
  return y if gate.levels is not None or factor is None else y * factor


def _times(factor, x):
  return x if factor is None else x * factor


def _columns(rows):
  """Each [R,C] of a list as a list of R columns [C,1], by one transposition."""
  if not rows:
    return []
  columns_CR = jnp.concatenate(rows, axis=0).T
  out, start = [], 0
  for part in rows:
    out.append([columns_CR[:, i:i + 1] for i in range(start, start + part.shape[0])])
    start += part.shape[0]
  return out
