"""The delta rule and decay per key channel on Hopper: XLA prepares the chunks, a kernel walks the states.

What a chunk needs of itself alone (scores, the solve of the delta rule, keys and queries with their decays
in) is what xla.py prepares for all chunks at once. What is left per chunk, with w S only for the delta rule:

    u <- u - w S           o  = q_in S + mix u           S  <- keep S + k_out^T u
    du = mix^T dO + k_out dS                             dS <- keep dS + q_in^T dO - w^T du

Grid (B H, V / 64): a program walks the chunks of one head, 64 tokens each, with a K x 64 state in registers.
Per chunk of the delta rule, for K = 128:

                 copied in                        copied out                             FLOPs
    forward      q_in, k_out, w, mix, u: 64 KB    o, entry state: 24 KB                  3.7 M
    backward     the same with dO for u: 64 KB    du, gradient of exit state: 24 KB      3.7 M

Lowered for cuda on a CPU and run in the GPU interpreter of newer jax; never run on a GPU.
"""

import dataclasses
import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence import xla
from pallas_kernels.chunk_recurrence.mosaic_gpu_tiles import (
    along, blocks, C, finish, multiply, PARAMS, read, ROWS, slots, start, stream, TILE, tile, transposed, vector,
    why_not, write)
from pallas_kernels.chunk_recurrence.plan import Inputs, Plan

__all__ = ["backward", "forward", "why_not"]

# Dims: N chunks, M = B*H independent rows, C rows of a chunk, K key width, V value width.


def forward(plan: Plan, inputs: Inputs, *, interpret=None):
  """As mosaic_gpu.forward."""
  return xla.forward(_cut(plan), inputs, functools.partial(_walk, interpret))


def backward(plan: Plan, inputs: Inputs, states, do_BTHV, dstate_BHKV, *, interpret=None) -> Inputs:
  """As mosaic_gpu.backward."""
  if states is None:
    _, _, states = forward(plan, inputs, interpret=interpret)
  return xla.backward(_cut(plan), inputs, states, do_BTHV, dstate_BHKV, functools.partial(_walk_back, interpret))


def _cut(plan):
  return dataclasses.replace(plan, chunk=C)


def _walk(interpret, chunk, u_NMCV, w_NMCK, S_MKV):
  """(o_NMCV, entry states S_NMKV, final S_MKV); `w` is None without the delta rule."""
  N, M, _, V = u_NMCV.shape
  return _launch(_forward_kernel, interpret, chunk, u_NMCV, w_NMCK, S_MKV,
                 (_array(u_NMCV.dtype, N, M, C, V), _array(u_NMCV.dtype, N, M, *S_MKV.shape[1:])))


def _walk_back(interpret, chunk, w_NMCK, do_NMCV, dS_MKV):
  """(du_NMCV, gradients of the exit states, gradient of the first state)."""
  N, M, _, V = do_NMCV.shape
  return _launch(_backward_kernel, interpret, chunk, do_NMCV, w_NMCK, dS_MKV,
                 (_array(do_NMCV.dtype, N, M, C, V), _array(do_NMCV.dtype, N, M, *dS_MKV.shape[1:])))


def _launch(kernel, interpret, chunk, x_NMCV, w_NMCK, S_MKV, per_chunk):
  """Runs a kernel on the moving operands and a first state; the final state is its last result."""
  N, M, _, V = x_NMCV.shape
  K = S_MKV.shape[1]
  keep = jnp.broadcast_to(chunk.keep_W1, (N, M, K, 1)).reshape(N, M, K // C, C)
  delta = () if w_NMCK is None else (w_NMCK,)
  moving = (x_NMCV, chunk.q_in_CK, chunk.k_out_CK, chunk.mix_CC.astype(x_NMCV.dtype), keep, *delta)
  emulated = {} if interpret is None else dict(interpret=interpret)
  return plgpu.kernel(
      functools.partial(kernel, len(moving)), out_type=(*per_chunk, _array(jnp.float32, *S_MKV.shape)),
      grid=(M, V // TILE), grid_names=("row", "column"), compiler_params=PARAMS,
      scratch_types=(slots(C, TILE), slots(C, K), slots(C, K), slots(C, C), plgpu.SMEM((2, K // C, C), jnp.float32),
                     *(slots(C, K) for _ in delta), plgpu.Barrier(num_arrivals=len(moving), num_barriers=2),
                     tile(K, TILE), tile(C, TILE), tile(C, TILE), tile(C, TILE, jnp.float32), plgpu.Barrier()),
      **emulated)(*moving, S_MKV)


def _array(dtype, *shape):
  return jax.ShapeDtypeStruct(shape, dtype)


def _forward_kernel(count, *refs):
  moving, (start_ref, o_ref, states_ref, final_ref), slots2, scratch = _split(count, refs)
  arrived, S, written, o, wide, once = scratch
  m, columns, fetch = _program(moving, slots2, arrived)

  def chunk(n, slot, state):
    u, q_in, k_out, mix, keep, *w = (x.at[slot] for x in slots2)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    write(state, S)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(S, states_ref.at[n, m, :, columns])
    if w:
      written[...] = (read(u) - multiply(w[0], S)).astype(written.dtype)
      plgpu.commit_smem()
      u = written
    o[...] = (multiply(q_in, S) + multiply(mix, u)).astype(o.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(o, o_ref.at[n, m, :, columns])
    return tuple(kept + multiply(transposed(k_out.at[:, block]), u)
                 for block, kept in zip(blocks(S.shape[0]), _keep(keep, state)))

  first = start(start_ref.at[m], columns, wide, once)
  state = stream(moving[0].shape[0], fetch, arrived, chunk, first, reverse=False)
  finish(state, wide, final_ref.at[m], columns)


def _backward_kernel(count, *refs):
  moving, (dfinal_ref, du_ref, dexit_ref, dstart_ref), slots2, scratch = _split(count, refs)
  arrived, dS, du, _, wide, once = scratch
  m, columns, fetch = _program(moving, slots2, arrived)

  def chunk(n, slot, dstate):
    do, q_in, k_out, mix, keep, *w = (x.at[slot] for x in slots2)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    write(dstate, dS)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(dS, dexit_ref.at[n, m, :, columns])
    du[...] = (multiply(transposed(mix), do) + multiply(k_out, dS)).astype(du.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(du, du_ref.at[n, m, :, columns])
    before = []
    for block, kept in zip(blocks(dS.shape[0]), _keep(keep, dstate)):
      kept += multiply(transposed(q_in.at[:, block]), do)
      before.append(kept - multiply(transposed(w[0].at[:, block]), du) if w else kept)
    return tuple(before)

  first = start(dfinal_ref.at[m], columns, wide, once)
  dstate = stream(moving[0].shape[0], fetch, arrived, chunk, first, reverse=True)
  finish(dstate, wide, dstart_ref.at[m], columns)


def _split(count, refs):
  """(moving operands, first state and results, their slots, other scratch)."""
  return refs[:count], refs[count:count + 4], refs[count + 4:2 * count + 4], refs[2 * count + 4:]


def _program(moving, slots2, arrived):
  """(row, its value channels, what fetches a chunk)."""
  m, columns = lax.axis_index("row"), pl.ds(lax.axis_index("column") * TILE, TILE)

  def fetch(n, slot):
    for i, (source, target) in enumerate(zip(moving, slots2)):
      # The first is as wide as the values: a program takes its tile of it.
      chunk = source.at[n, m, :, columns] if i == 0 else source.at[n, m]
      plgpu.copy_gmem_to_smem(chunk, target.at[slot], arrived.at[slot])

  return m, columns, fetch


def _keep(keep, state):
  """keep S, one factor per key channel."""
  return [S_CV * along(vector(keep.at[i], ROWS), ROWS, S_CV.shape) for i, S_CV in enumerate(state)]
