"""One chunk of a few heads, in operations that a TPU's Mosaic compiler has.

The algebra is that of chunk.py; what differs is what a TPU makes cheap. All arrays carry the heads of a
grid step as leading axis, so that every line issues work for all of them and none waits for a matmul.
Scalar factors multiply results of matmuls (rows), not operands, and everything is masks on whole C x C
tiles. `reverse` renames positions: row r is at position C - 1 - r, and nothing else changes.

Reference: as chunk.py. The gradients are in tpu_backward.py.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence import tpu_scores
from pallas_kernels.chunk_recurrence.tpu_matrix import dot, fine_dot, inverse, Positions

# Dims: H heads of a grid step, C rows of a chunk, K key width, V value width, W = 1 or K.

LANES = 128


class Rows(NamedTuple):
  """What one grid step reads, one entry per value head."""

  q_HCK: jax.Array
  k_HCK: jax.Array
  v_HCV: jax.Array


class Gates(NamedTuple):
  """Gates and segment masks of a chunk; None stands for a factor of one.

  Attributes:
    enter: decay from the entry of the chunk to a row, [H,C,LANES] alike in all lanes, [H,C,K] or [1,C,1].
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
    rows.append(cumulative_HC)
  if beta_HC is not None:
    rows.append(beta_HC)
  columns = _columns(rows)
  if segment_4C is not None:
    (ids, entry, out, _), columns = columns[0], columns[1:]
    entry, out, kept = entry[None], out[None], segment_4C[3:4, :1][None]
    mask = mask & (ids[None] == segment_4C[None, :1])

  enter, leave, keep, pairs, levels = entry, out, kept, None, None
  if cumulative_HC is not None:
    G_HC1, columns = jnp.stack(columns[0]), columns[1:]
    # Spread over lanes once: an exponential per lane is cheaper than to spread enter and leave as well.
    G_HCL = jnp.broadcast_to(G_HC1, (*G_HC1.shape[:2], LANES))
    enter, leave = jnp.exp(G_HCL), jnp.exp(last_H1[:, :, None] - G_HCL)
    pairs = _pair_decays(G_HCL, cumulative_HC[:, None, :], mask, place)
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
  far = after(gate, dot("nn", before(gate, q, gate.enter), S_HKV, fed), gate.enter)
  if gate.beta_HC1 is None and gate.levels is None:
    u, near = v, _read_strips(rows, gate, place, fed)
  else:
    mix, u, _ = write(rows, gate, S_HKV, place, fed)
    near = dot("nn", mix, u, fed)
  return scale * (far + near), exit_state(k, u, gate, S_HKV, fed)


def exit_state(k_HCK, u_HCV, gate, S_HKV, fed):
  """keep S + k_out^T u."""
  added = dot("tn", before(gate, k_HCK, gate.leave), after(gate, u_HCV, gate.leave), fed)
  return times(gate.keep, S_HKV) + added


def states_only(rows: Rows, gate: Gates, S_HKV, place: Positions, fed: Any):
  """The exit state without the output; arguments as `forward`."""
  u = rows.v_HCV
  if gate.beta_HC1 is not None:
    _, u, _ = write(rows, gate, S_HKV, place, fed)
  return exit_state(rows.k_HCK, u, gate, S_HKV, fed)


def write(rows, gate, S_HKV, place, fed):
  """(mix, u, (inverse, erase / beta, v - k_in S) or None): what the rows read and write."""
  q, k, v = rows
  mix, erase = _scores(q, k, gate, place, fed)
  if erase is None:
    return mix, v, None
  miss = v.astype(jnp.float32) - after(
      gate, dot("nn", before(gate, k, gate.enter), S_HKV, fed), gate.enter)
  inverse_HCC = inverse(gate.beta_HC1 * erase, place, fed)
  u = fine_dot("nn", inverse_HCC, gate.beta_HC1 * miss, fed)
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


def _read_strips(rows, gate, place, fed):
  """mix v in strips of rows, each against the columns that are not wholly in its future."""
  # All scores before the first decay: the scheduler keeps this order, and they need no gates.
  out, strips = [], _strips(place)
  scores = [dot("nt", rows.q_HCK[:, own], rows.k_HCK[:, seen], fed) for own, seen in strips]
  for (own, seen), score in zip(strips, scores):
    if gate.pairs_HCC is None:
      mix = jnp.where(gate.mask_1CC[:, own, seen], score, 0.0)
    else:
      mix = score * gate.pairs_HCC[:, own, seen]
    out.append(dot("nn", mix, rows.v_HCV[:, seen], fed))
  return jnp.concatenate(out, axis=1)


def _pair_decays(row_HCL, col_H1C, mask_1CC, place):
  """exp(row - col) where the mask holds, else 0."""
  # No exp2 of scaled sums: fused into a subtraction, one of two equal products would stay unrounded.
  C, strips = mask_1CC.shape[-1], []
  for own, seen in _strips(place):
    col = col_H1C[:, :, seen]
    gap = jnp.where(mask_1CC[:, own, seen], _fit(row_HCL[:, own], col.shape[2]) - col, -jnp.inf)
    part = jnp.exp(gap)
    zeros = [jnp.zeros((*part.shape[:2], C - part.shape[2]), part.dtype)] if part.shape[2] < C else []
    strips.append(jnp.concatenate([*zeros, part] if place.reverse else [part, *zeros], axis=2))
  return jnp.concatenate(strips, axis=1)


def _strips(place):
  """(rows, columns not wholly in their future) of every strip of a tile of lanes."""
  C = place.row_C1.shape[0]
  tile = min(C, LANES)
  return [(slice(i, i + tile), slice(i, C) if place.reverse else slice(0, i + tile))
          for i in range(0, C, tile)]


def before(gate, x, factor):
  """The part of a row factor that must be multiplied in before a matmul: what differs per channel."""
  return x.astype(jnp.float32) * factor if gate.levels is not None else x


def after(gate, y, factor):
  """The part that may wait until after it: one factor per row."""
  return y if gate.levels is not None or factor is None else y * _fit(factor, y.shape[-1])


def times(factor, x):
  return x if factor is None else x * _fit(factor, x.shape[-1])


def _fit(factor, width):
  """A factor that is the same in all its lanes, in so many lanes."""
  lanes = factor.shape[-1]
  if lanes in (1, width):
    return factor
  return jnp.concatenate([factor] * -(-width // lanes), axis=-1)[..., :width]


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
