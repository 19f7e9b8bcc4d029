"""One program of the Hopper kernels: a head and 64 value channels, chunk after chunk.

The algebra is that of chunk.py for one decay per token or none, on the tiles of mosaic_gpu_tiles.py, the
backward written out with cotangents dO and dS of the exit state:

    dv = mix^T dO + k_out dS                   dS_0 = keep dS + q_in^T dO
    dq = dmix k + enter dO S^T                 dk = dmix^T q + leave v dS^T
    dG_i = q_i dq_i - k_i dk_i                 and what belongs to the last row of a chunk, apart

Reference: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2024.
"""

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence.mosaic_gpu_tiles import (
    along, blocks, C, COLUMNS, finish, multiply, read, ROWS, start, stream, TILE, TILED, transposed, write)

# Dims: C rows of a chunk, K key width, V value width, N chunks. A `2` ends what has two slots or two rows.


def forward_kernel(plan, q_ref, k_ref, v_ref, gates_ref, start_ref, o_ref, final_ref, states_ref,
                    q2, k2, v2, gates2, arrived, mix, written, o, S, wide, once):
  b, h, key_head, column, columns = _program(plan)

  def fetch(n, slot):
    rows = pl.ds(n * C, C)
    for source, target in ((q_ref.at[b, rows, key_head], q2), (k_ref.at[b, rows, key_head], k2),
                           (v_ref.at[b, rows, h, columns], v2), (gates_ref.at[b, h, :, rows], gates2)):
      plgpu.copy_gmem_to_smem(source, target.at[slot], arrived.at[slot])

  def chunk(n, slot, state):
    q, k, v, gates = (x.at[slot] for x in (q2, k2, v2, gates2))
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    write(state, S)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(S, states_ref.at[_turn(plan, n), b, h, :, columns])
    enter_C, leave_C, keep, pairs_CC = _decays(gates, plan.reverse)
    mix[...] = (multiply(q, transposed(k)) * (pairs_CC * plan.scale)).astype(mix.dtype)
    written[...] = (read(v) * along(leave_C, ROWS, (C, TILE))).astype(written.dtype)
    plgpu.commit_smem()
    o_CV = multiply(q, S) * along(enter_C * plan.scale, ROWS, (C, TILE)) + multiply(mix, v)
    o[...] = o_CV.astype(o.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(o, o_ref.at[b, pl.ds(n * C, C), h, columns])
    return _advance(state, keep, k, written)

  state = stream(v_ref.shape[1] // C, fetch, arrived, chunk, start(start_ref.at[b, h], columns, wide, once),
                  reverse=plan.reverse)
  finish(state, wide, final_ref.at[b, h], columns)


def backward_kernel(plan, q_ref, k_ref, v_ref, do_ref, states_ref, gates_ref, dfinal_ref,
                     dq_ref, dk_ref, dv_ref, dstart_ref, dG_ref, out_ref, kept_ref,
                     q2, k2, v2, do2, S2, gates2, arrived, mix, dmix, seen, dv, dS, wide, rows2, kept, once):
  b, h, key_head, column, columns = _program(plan)

  def fetch(n, slot):
    rows = pl.ds(n * C, C)
    for source, target in ((q_ref.at[b, rows, key_head], q2), (k_ref.at[b, rows, key_head], k2),
                           (v_ref.at[b, rows, h, columns], v2), (do_ref.at[b, rows, h, columns], do2),
                           (states_ref.at[_turn(plan, n), b, h, :, columns], S2),
                           (gates_ref.at[b, h, :, rows], gates2)):
      plgpu.copy_gmem_to_smem(source, target.at[slot], arrived.at[slot])

  def chunk(n, slot, dstate):
    rows = pl.ds(n * C, C)
    q, k, v, do, S, gates = (x.at[slot] for x in (q2, k2, v2, do2, S2, gates2))
    enter_C, leave_C, keep, pairs_CC = _decays(gates, plan.reverse)
    enter_C, pairs_CC = enter_C * plan.scale, pairs_CC * plan.scale
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    write(dstate, dS)
    mix[...] = (multiply(q, transposed(k)) * pairs_CC).astype(mix.dtype)
    dmix[...] = (multiply(do, transposed(v)) * pairs_CC).astype(dmix.dtype)
    seen[...] = (read(do) * along(enter_C, ROWS, (C, TILE))).astype(seen.dtype)
    plgpu.commit_smem()
    dv_CV = multiply(transposed(mix), do) + multiply(k, dS) * along(leave_C, ROWS, (C, TILE))
    dv[...] = dv_CV.astype(dv.dtype)
    gate_C = out_C = 0.0
    for block, dS_CV in zip(blocks(plan.K), dstate):
      q_CC, k_CC = read(q.at[:, block]), read(k.at[:, block])
      dq_CC = (multiply(dmix, k.at[:, block])
               + multiply(do, transposed(S.at[block])) * along(enter_C, ROWS, (C, C)))
      written_CC = multiply(v, transposed(dS.at[block])) * along(leave_C, ROWS, (C, C))
      dk_CC = multiply(transposed(dmix), q.at[:, block]) + written_CC
      gate_C += jnp.sum(q_CC * dq_CC - k_CC * dk_CC, axis=1)
      out_C += jnp.sum(k_CC * written_CC, axis=1)
      kept[block] = jnp.sum(read(S.at[block]) * dS_CV, axis=1)
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)
      wide[0], wide[1] = dq_CC, dk_CC
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(wide.at[0], dq_ref.at[column, b, rows, h, block])
      plgpu.copy_smem_to_gmem(wide.at[1], dk_ref.at[column, b, rows, h, block])
    rows2[0], rows2[1] = gate_C, out_C
    plgpu.commit_smem()
    for source, target in ((dv, dv_ref.at[b, rows, h, columns]), (rows2.at[0], dG_ref.at[column, b, h, rows]),
                           (rows2.at[1], out_ref.at[column, b, h, rows]), (kept, kept_ref.at[column, b, h, n])):
      plgpu.copy_smem_to_gmem(source, target)
    return _advance(dstate, keep, q, seen)

  dstate = stream(v_ref.shape[1] // C, fetch, arrived, chunk,
                  start(dfinal_ref.at[b, h], columns, wide.at[0], once), reverse=not plan.reverse)
  finish(dstate, wide.at[0], dstart_ref.at[b, h], columns)


def _turn(plan, n):
  """When chunk n is processed: states are kept in that order."""
  return -(-plan.T // C) - 1 - n if plan.reverse else n


def _decays(gates, reverse):
  """(decay from the entry to a row, from a row to the exit, over the chunk, between two rows or 0).

  Args:
    gates: row 0 the cumulative log decay; with segments rows 1 to 3 their ids, and 1.0 where a token belongs
      to the segment of the entry and of the exit.
  """
  column = lambda row, axis: plgpu.layout_cast(gates[row], TILED.reduce(1 - axis))
  spread = lambda row, axis: along(column(row, axis), axis, (C, C))
  row, col = (plgpu.broadcasted_iota(jnp.int32, (C, C), axis, layout=TILED) for axis in (0, 1))
  mask_CC = row <= col if reverse else row >= col
  final = 0 if reverse else C - 1
  if gates.shape[0] > 1:
    mask_CC &= spread(1, ROWS) == spread(1, COLUMNS)
  pairs_CC = jnp.exp(jnp.where(mask_CC, spread(0, ROWS) - spread(0, COLUMNS), -jnp.inf))
  last = gates[0, final]
  enter_C, leave_C, keep = jnp.exp(column(0, ROWS)), jnp.exp(last - column(0, ROWS)), jnp.exp(last)
  if gates.shape[0] > 1:
    enter_C, leave_C, keep = enter_C * column(2, ROWS), leave_C * column(3, ROWS), keep * gates[2, final]
  return enter_C, leave_C, keep, pairs_CC


def _program(plan):
  b, h, column = (lax.axis_index(name) for name in ("batch", "head", "column"))
  return b, h, lax.div(h, jnp.int32(plan.H // plan.G)), column, pl.ds(column * TILE, TILE)


def _advance(state, keep, x, written):
  """keep S + x^T written, block by block."""
  return tuple(S_CV * keep + multiply(transposed(x.at[:, block]), written)
               for block, S_CV in zip(blocks(x.shape[1]), state))
