"""The recurrence with one decay per token or none, as Pallas Mosaic GPU kernels for Hopper.

Lowered for cuda on a CPU and run in the GPU interpreter of newer jax; never run on a GPU.

Grid (B, H, V / 64), one warpgroup per program: it walks the chunks of one head, 64 tokens each, with a
K x 64 state in registers. TMA copies bring the next chunk into the other of two slots of shared memory
while this one is computed; every product is a wgmma on bfloat16 tiles in shared memory with a float32
accumulator. Per chunk, in bytes for K = 128:

                 copied in           copied out                                  products of 64 x 64 x 128
    forward      q, k, v: 40 KB      o, entry state: 24 KB                       3.5
    backward     + do, state: 64 KB  dv 8 KB, float32 parts of dq, dk: 64 KB     8

Parts of dq and dk are summed over tiles of V (and over the value heads of a key head) by XLA, which also
makes the cumulative gates and their gradients: arrays of one float per token and head.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence.plan import Inputs, Plan

# Dims: B batch, T tokens, H value heads, G key heads, K key width, V value width, N chunks, C rows of a chunk.

C = 64  # tokens per chunk: rows of one wgmma
TILE = 64  # value channels per program
ROWS, COLUMNS = 0, 1  # axis of a tile that a vector runs along
TILED = plgpu.Layout.WGMMA


def why_not(plan: Plan) -> str | None:
  """Reason why these kernels do not compute `plan`, on whatever device, or None."""
  if plan.decay == "vector" or plan.delta or plan.packed or plan.reverse:
    return "the Hopper kernels know neither vector decay, delta rule, segments nor reversed order yet"
  if plan.dtype != "bfloat16" or plan.precision != "mixed":
    return f"wgmma is fed with bfloat16 here, not {plan.dtype} at precision {plan.precision!r}"
  if plan.chunk != C or plan.K not in (64, 128) or plan.V % TILE:
    return (f"chunk={plan.chunk}, K={plan.K}, V={plan.V} must be chunk={C}, K=64 or 128 and V a multiple "
            f"of {TILE} to fill wgmma tiles within shared memory")
  return None


def forward(plan: Plan, inputs: Inputs, *, interpret=None):
  """Runs the recurrence.

  Args:
    plan: the static half of the call, one that `why_not` has nothing against.
    inputs: canonical arrays.
    interpret: parameters of jax's GPU interpreter, to emulate the kernel.

  Returns:
    (o_BTHV in v's dtype, final state_BHKV, entry states [N,B,H,K,V] in v's dtype).
  """
  q, k, v = (_whole_chunks(x) for x in inputs[:3])
  B, T, H, V = v.shape
  o, final, states = _launch(
      plan, _forward_kernel, interpret,
      out_type=(_array(v.dtype, *v.shape), _array(jnp.float32, B, H, plan.K, V),
                _array(v.dtype, T // C, B, H, plan.K, V)),
      scratch_types=(_slots(C, plan.K), _slots(C, plan.K), _slots(C, TILE), plgpu.SMEM((2, C), jnp.float32),
                     plgpu.Barrier(num_arrivals=4, num_barriers=2), _tile(C, C), _tile(C, TILE), _tile(C, TILE),
                     _tile(plan.K, TILE), _tile(C, TILE, jnp.float32), plgpu.Barrier()))(
          q, k, v, _cumulative(plan, inputs), inputs.state)
  return o[:, :plan.T], final, states


def backward(plan: Plan, inputs: Inputs, states, do_BTHV, dstate_BHKV, *, interpret=None) -> Inputs:
  """Gradients of every array of `inputs`.

  Args:
    plan, inputs, interpret: as in `forward`.
    states: what `forward` returned, or None to run the states again.
    do_BTHV, dstate_BHKV: cotangents of the output and of the final state.

  Returns:
    Cotangents in the shape of `inputs`.
  """
  if states is None:
    _, _, states = forward(plan, inputs, interpret=interpret)
  q, k, v, do = (_whole_chunks(x) for x in (*inputs[:3], do_BTHV.astype(inputs.v.dtype)))
  B, T, H, V = v.shape
  N, tiles, K = T // C, V // TILE, plan.K
  G_BHT = _cumulative(plan, inputs)
  keys = _array(jnp.float32, tiles, B, T, H, K)
  rows = _array(jnp.float32, tiles, B, H, T)
  dq, dk, dv, dstate, dG, out, kept = _launch(
      plan, _backward_kernel, interpret,
      out_type=(keys, keys, _array(v.dtype, *v.shape), _array(jnp.float32, B, H, K, V), rows, rows,
                _array(jnp.float32, tiles, B, H, N, K)),
      scratch_types=(_slots(C, K), _slots(C, K), _slots(C, TILE), _slots(C, TILE), _slots(K, TILE),
                     plgpu.SMEM((2, C), jnp.float32), plgpu.Barrier(num_arrivals=6, num_barriers=2),
                     _tile(C, C), _tile(C, C), _tile(C, TILE), _tile(C, TILE), _tile(K, TILE),
                     _slots(C, C, jnp.float32), plgpu.SMEM((2, C), jnp.float32),
                     plgpu.SMEM((K,), jnp.float32), plgpu.Barrier()))(
          q, k, v, do, states, G_BHT, dstate_BHKV)
  ungroup = lambda x: jnp.sum(x, axis=0)[:, :plan.T].reshape(B, plan.T, plan.G, -1, K).sum(3).astype(v.dtype)
  dg = None
  if inputs.g is not None:
    chunked = lambda x: jnp.sum(x, axis=0).reshape(B, H, N, C)
    last = jnp.exp(G_BHT.reshape(B, H, N, C)[..., -1:])
    exit_gate = jnp.sum(chunked(out), -1, keepdims=True) + last * jnp.sum(kept, axis=(0, -1))[..., None]
    dg = lax.cumsum(chunked(dG), axis=3, reverse=True) + exit_gate
    dg = jnp.swapaxes(dg.reshape(B, H, T), 1, 2)[:, :plan.T]
  return Inputs(ungroup(dq), ungroup(dk), dv[:, :plan.T], dg, None, dstate, None)


def _forward_kernel(plan, q_ref, k_ref, v_ref, G_ref, start_ref, o_ref, final_ref, states_ref,
                    q2, k2, v2, G2, arrived, mix, written, o, S, wide, once):
  b, h, key_head, column, columns = _program(plan)

  def fetch(n, slot):
    rows = pl.ds(n * C, C)
    for source, target in ((q_ref.at[b, rows, key_head], q2), (k_ref.at[b, rows, key_head], k2),
                           (v_ref.at[b, rows, h, columns], v2), (G_ref.at[b, h, rows], G2)):
      plgpu.copy_gmem_to_smem(source, target.at[slot], arrived.at[slot])

  def chunk(n, slot, state):
    q, k, v, G = (x.at[slot] for x in (q2, k2, v2, G2))
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    _write(state, S)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(S, states_ref.at[n, b, h, :, columns])
    enter_C, leave_C, keep, pairs_CC = _decays(G)
    mix[...] = (_multiply(q, _t(k)) * (pairs_CC * plan.scale)).astype(mix.dtype)
    written[...] = (_read(v) * _along(leave_C, ROWS, (C, TILE))).astype(written.dtype)
    plgpu.commit_smem()
    o_CV = _multiply(q, S) * _along(enter_C * plan.scale, ROWS, (C, TILE)) + _multiply(mix, v)
    o[...] = o_CV.astype(o.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(o, o_ref.at[b, pl.ds(n * C, C), h, columns])
    return _advance(state, keep, k, written)

  state = _stream(v_ref.shape[1] // C, fetch, arrived, chunk, _start(start_ref.at[b, h], columns, wide, once),
                  reverse=False)
  _finish(state, wide, final_ref.at[b, h], columns)


def _backward_kernel(plan, q_ref, k_ref, v_ref, do_ref, states_ref, G_ref, dfinal_ref,
                     dq_ref, dk_ref, dv_ref, dstart_ref, dG_ref, out_ref, kept_ref,
                     q2, k2, v2, do2, S2, G2, arrived, mix, dmix, read, dv, dS, wide, rows2, kept, once):
  b, h, key_head, column, columns = _program(plan)

  def fetch(n, slot):
    rows = pl.ds(n * C, C)
    for source, target in ((q_ref.at[b, rows, key_head], q2), (k_ref.at[b, rows, key_head], k2),
                           (v_ref.at[b, rows, h, columns], v2), (do_ref.at[b, rows, h, columns], do2),
                           (states_ref.at[n, b, h, :, columns], S2), (G_ref.at[b, h, rows], G2)):
      plgpu.copy_gmem_to_smem(source, target.at[slot], arrived.at[slot])

  def chunk(n, slot, dstate):
    rows = pl.ds(n * C, C)
    q, k, v, do, S, G = (x.at[slot] for x in (q2, k2, v2, do2, S2, G2))
    enter_C, leave_C, keep, pairs_CC = _decays(G)
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
                   _start(dfinal_ref.at[b, h], columns, wide.at[0], once), reverse=True)
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


def _decays(G):
  """(decay from the entry to a row, from a row to the exit, over the chunk, between two rows or 0)."""
  enter_C = plgpu.layout_cast(G[...], TILED.reduce(1))
  other_C = plgpu.layout_cast(G[...], TILED.reduce(0))
  last = G[C - 1]
  row, col = (plgpu.broadcasted_iota(jnp.int32, (C, C), axis, layout=TILED) for axis in (0, 1))
  gap_CC = _along(enter_C, ROWS, (C, C)) - _along(other_C, COLUMNS, (C, C))
  pairs_CC = jnp.exp(jnp.where(row >= col, gap_CC, -jnp.inf))
  return jnp.exp(enter_C), jnp.exp(last - enter_C), jnp.exp(last), pairs_CC


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


def _array(dtype, *shape):
  return jax.ShapeDtypeStruct(shape, dtype)


def _tile(rows, columns, dtype=jnp.bfloat16):
  """Shared memory in the order that wgmma and TMA want."""
  return plgpu.SMEM((rows, columns), dtype, transforms=_order(dtype))


def _slots(rows, columns, dtype=jnp.bfloat16):
  return plgpu.SMEM((2, rows, columns), dtype, transforms=_order(dtype))


def _order(dtype):
  return plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize)), plgpu.SwizzleTransform(128)


def _launch(plan, kernel, interpret, **types):
  # Layouts are stated, not inferred: inference of jax 0.12 finds none for these kernels.
  params = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane)
  emulated = {} if interpret is None else dict(interpret=interpret)
  return plgpu.kernel(functools.partial(kernel, plan), grid=(plan.B, plan.H, plan.V // TILE),
                      grid_names=("batch", "head", "column"), compiler_params=params, **types, **emulated)


def _whole_chunks(x):
  """Pads [B,T,...] with tokens that write nothing."""
  missing = -x.shape[1] % C
  return jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2)) if missing else x


def _cumulative(plan, inputs):
  """Sums [B,H,T] of the log decays inside each chunk, up to and with each token."""
  if inputs.g is None:
    return jnp.zeros((plan.B, plan.H, plan.chunks * C), jnp.float32)
  g_BHT = jnp.swapaxes(_whole_chunks(inputs.g), 1, 2)
  return jnp.cumsum(g_BHT.reshape(plan.B, plan.H, -1, C), axis=-1).reshape(g_BHT.shape)
