"""One program of the Hopper kernels: a head and 64 value channels, chunk after chunk.

TMA copies bring the next chunk into the other of two slots of shared memory while this one is computed;
every product is a wgmma on bfloat16 tiles in shared memory with a float32 accumulator. The algebra is that
of chunk.py for one decay per token, the backward written out with cotangents dO and dS of the exit state:

    dv = mix^T dO + k_out dS                   dS_0 = keep dS + q_in^T dO
    dq = dmix k + enter dO S^T                 dk = dmix^T q + leave v dS^T
    dG_i = q_i dq_i - k_i dk_i                 and what belongs to the last row of a chunk, apart

Reference: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2024.
"""

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

# Dims: C rows of a chunk, K key width, V value width, N chunks. A `2` ends what has two slots or two rows.

C = 64  # tokens per chunk: rows of one wgmma
TILE = 64  # value channels per program
ROWS, COLUMNS = 0, 1  # axis of a tile that a vector runs along
TILED = plgpu.Layout.WGMMA


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
    _write(state, S)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(S, states_ref.at[_turn(plan, n), b, h, :, columns])
    enter_C, leave_C, keep, pairs_CC = _decays(gates, plan.reverse)
    mix[...] = (_multiply(q, _t(k)) * (pairs_CC * plan.scale)).astype(mix.dtype)
    written[...] = (_read(v) * _along(leave_C, ROWS, (C, TILE))).astype(written.dtype)
    plgpu.commit_smem()
    o_CV = _multiply(q, S) * _along(enter_C * plan.scale, ROWS, (C, TILE)) + _multiply(mix, v)
    o[...] = o_CV.astype(o.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(o, o_ref.at[b, pl.ds(n * C, C), h, columns])
    return _advance(state, keep, k, written)

  state = _stream(v_ref.shape[1] // C, fetch, arrived, chunk, _start(start_ref.at[b, h], columns, wide, once),
                  reverse=plan.reverse)
  _finish(state, wide, final_ref.at[b, h], columns)


def backward_kernel(plan, q_ref, k_ref, v_ref, do_ref, states_ref, gates_ref, dfinal_ref,
                     dq_ref, dk_ref, dv_ref, dstart_ref, dG_ref, out_ref, kept_ref,
                     q2, k2, v2, do2, S2, gates2, arrived, mix, dmix, read, dv, dS, wide, rows2, kept, once):
  b, h, key_head, column, columns = _program(plan)

  def fetch(n, slot):
    rows = pl.ds(n * C, C)
    for source, target in ((q_ref.at[b, rows, key_head], q2), (k_ref.at[b, rows, key_head], k2),
                           (v_ref.at[b, rows, h, columns], v2), (do_ref.at[b, rows, h, columns], do2),
                           (states_ref.at[_turn(plan, n), b, h, :, columns], S2), (gates_ref.at[b, h, :, rows], gates2)):
      plgpu.copy_gmem_to_smem(source, target.at[slot], arrived.at[slot])

  def chunk(n, slot, dstate):
    rows = pl.ds(n * C, C)
    q, k, v, do, S, gates = (x.at[slot] for x in (q2, k2, v2, do2, S2, gates2))
    enter_C, leave_C, keep, pairs_CC = _decays(gates, plan.reverse)
    enter_C, pairs_CC = enter_C * plan.scale, pairs_CC * plan.scale
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    _write(dstate, dS)
    mix[...] = (_multiply(q, _t(k)) * pairs_CC).astype(mix.dtype)
    dmix[...] = (_multiply(do, _t(v)) * pairs_CC).astype(dmix.dtype)
    read[...] = (_read(do) * _along(enter_C, ROWS, (C, TILE))).astype(read.dtype)
    plgpu.commit_smem()
    dv_CV = _multiply(_t(mix), do) + _multiply(k, dS) * _along(leave_C, ROWS, (C, TILE))
    dv[...] = dv_CV.astype(dv.dtype)
    gate_C = out_C = 0.0
    for block, dS_CV in zip(_blocks(plan.K), dstate):
      q_CC, k_CC = _read(q.at[:, block]), _read(k.at[:, block])
      dq_CC = (_multiply(dmix, k.at[:, block])
               + _multiply(do, _t(S.at[block])) * _along(enter_C, ROWS, (C, C)))
      written_CC = _multiply(v, _t(dS.at[block])) * _along(leave_C, ROWS, (C, C))
      dk_CC = _multiply(_t(dmix), q.at[:, block]) + written_CC
      gate_C += jnp.sum(q_CC * dq_CC - k_CC * dk_CC, axis=1)
      out_C += jnp.sum(k_CC * written_CC, axis=1)
      kept[block] = jnp.sum(_read(S.at[block]) * dS_CV, axis=1)
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
    return _advance(dstate, keep, q, read)

  dstate = _stream(v_ref.shape[1] // C, fetch, arrived, chunk,
                   _start(dfinal_ref.at[b, h], columns, wide.at[0], once), reverse=not plan.reverse)
  _finish(dstate, wide.at[0], dstart_ref.at[b, h], columns)


def _stream(N, fetch, arrived, chunk, carry, *, reverse):
  """Folds `chunk(n, slot, carry)` over all chunks, fetching each one step ahead into the other slot."""
  nth = lambda i: N - 1 - i if reverse else i
  fetch(jnp.int32(nth(0)), jnp.int32(0))

  def step(i, carry):
    slot = lax.rem(i, jnp.int32(2))

    @pl.when(i + 1 < N)
    def _():
      # No warp may still read the slot that is overwritten.
      plgpu.commit_smem()
      fetch(nth(i + 1), 1 - slot)

    plgpu.barrier_wait(arrived.at[slot])
    return chunk(nth(i), slot, carry)

  return lax.fori_loop(0, N, step, carry)


def _turn(plan, n):
  """When chunk n is processed: states are kept in that order."""
  return -(-plan.T // C) - 1 - n if plan.reverse else n


def _decays(gates, reverse):
  """(decay from the entry to a row, from a row to the exit, over the chunk, between two rows or 0).

  Args:
    gates: row 0 the cumulative log decay; with segments rows 1 to 3 their ids, and 1.0 where a token belongs
      to the segment of the entry and of the exit.
  """
  along = lambda row, axis: plgpu.layout_cast(gates[row], TILED.reduce(1 - axis))
  spread = lambda row, axis: _along(along(row, axis), axis, (C, C))
  row, col = (plgpu.broadcasted_iota(jnp.int32, (C, C), axis, layout=TILED) for axis in (0, 1))
  mask_CC = row <= col if reverse else row >= col
  final = 0 if reverse else C - 1
  if gates.shape[0] > 1:
    mask_CC &= spread(1, ROWS) == spread(1, COLUMNS)
  pairs_CC = jnp.exp(jnp.where(mask_CC, spread(0, ROWS) - spread(0, COLUMNS), -jnp.inf))
  last = gates[0, final]
  enter_C, leave_C, keep = jnp.exp(along(0, ROWS)), jnp.exp(last - along(0, ROWS)), jnp.exp(last)
  if gates.shape[0] > 1:
    enter_C, leave_C, keep = enter_C * along(2, ROWS), leave_C * along(3, ROWS), keep * gates[2, final]
  return enter_C, leave_C, keep, pairs_CC


def _multiply(a, b):
  """a @ b for tiles in shared memory, awaited, in float32 registers."""
  def accumulate(sum_ref):
    plgpu.wgmma(sum_ref, a, b)
    return sum_ref[...]

  # The interpreter takes operands of wgmma in shared memory only, not in registers.
  return pl.run_scoped(accumulate, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def _program(plan):
  b, h, column = (lax.axis_index(name) for name in ("batch", "head", "column"))
  return b, h, lax.div(h, jnp.int32(plan.H // plan.G)), column, pl.ds(column * TILE, TILE)


def _blocks(K):
  """The state is a tuple of blocks of 64 key channels: a wgmma has 64 rows, and staging stays small."""
  return tuple(pl.ds(start, C) for start in range(0, K, C))


def _start(source, columns, staging, barrier):
  """A K x 64 state from global memory in registers."""
  state = []
  for block in _blocks(source.shape[0]):
    plgpu.copy_gmem_to_smem(source.at[block, columns], staging, barrier)
    plgpu.barrier_wait(barrier)
    state.append(_read(staging))
    plgpu.commit_smem()
  return tuple(state)


def _finish(state, staging, target, columns):
  """Sends a K x 64 state to global memory."""
  for block, S_CV in zip(_blocks(target.shape[0]), state):
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    staging[...] = S_CV
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(staging, target.at[block, columns])
  plgpu.wait_smem_to_gmem(0)


def _write(state, target):
  for block, S_CV in zip(_blocks(target.shape[0]), state):
    target[block, :] = S_CV.astype(target.dtype)


def _advance(state, keep, x, written):
  """keep S + x^T written, block by block."""
  return tuple(S_CV * keep + _multiply(_t(x.at[:, block]), written)
               for block, S_CV in zip(_blocks(x.shape[1]), state))


def _read(ref):
  return plgpu.layout_cast(ref[...], TILED).astype(jnp.float32)


def _along(x_C, axis, shape):
  return lax.broadcast_in_dim(x_C, shape, [axis])


def _t(ref):
  return ref.transpose((1, 0))
