"""The recurrence with one decay per token or none, as Pallas Mosaic GPU kernels for Hopper.

Lowered for cuda on a CPU and run in the GPU interpreter of newer jax; never run on a GPU.

Grid (B, H, V / 64), one warpgroup per program: it walks the chunks of one head, 64 tokens each, with a
K x 64 state in registers; chunks asked to be longer are cut. Per chunk, for K = 128:

                 copied in              copied out                                  FLOPs
    forward      q, k, v: 40 KB         o, entry state: 24 KB                       3.7 M
    backward     and do, state: 64 KB   dv: 8 KB, float32 parts of dq, dk: 64 KB    8.4 M

Parts of dq and dk are summed over tiles of V (and over the value heads of a key head) by XLA, which also
makes the cumulative gates and their gradients: arrays of one float per token and head.
"""

import functools

import jax
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence.mosaic_gpu_kernels import backward_kernel, forward_kernel
from pallas_kernels.chunk_recurrence.mosaic_gpu_tiles import C, PARAMS, slots, TILE, tile, why_not
from pallas_kernels.chunk_recurrence.plan import Inputs, Plan

__all__ = ["backward", "forward", "why_not"]

# Dims: B batch, T tokens, H value heads, G key heads, K key width, V value width, N chunks, C rows of a chunk.


def forward(plan: Plan, inputs: Inputs, *, interpret=None):
  """Runs the recurrence.

  Args:
    plan: the static half of the call, one that `why_not` has nothing against.
    inputs: canonical arrays.
    interpret: parameters of jax's GPU interpreter, to emulate the kernel.

  Returns:
    (o_BTHV in v's dtype, final state_BHKV, a state [B,H,K,V] in v's dtype for every 64 tokens).
  """
  q, k, v = (_whole_chunks(plan, x) for x in inputs[:3])
  B, T, H, V = v.shape
  o, final, states = _launch(
      plan, forward_kernel, interpret,
      out_type=(_array(v.dtype, *v.shape), _array(jnp.float32, B, H, plan.K, V),
                _array(v.dtype, T // C, B, H, plan.K, V)),
      scratch_types=(slots(C, plan.K), slots(C, plan.K), slots(C, TILE), _gate_slots(plan),
                     plgpu.Barrier(num_arrivals=4, num_barriers=2), tile(C, C), tile(C, TILE), tile(C, TILE),
                     tile(plan.K, TILE), tile(C, TILE, jnp.float32), plgpu.Barrier()))(
          q, k, v, _gates(plan, inputs), inputs.state)
  return _tokens(plan, o), final, states


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
  q, k, v, do = (_whole_chunks(plan, x) for x in (*inputs[:3], do_BTHV.astype(inputs.v.dtype)))
  B, T, H, V = v.shape
  N, tiles, K = T // C, V // TILE, plan.K
  gates_BHRT = _gates(plan, inputs)
  keys = _array(jnp.float32, tiles, B, T, H, K)
  rows = _array(jnp.float32, tiles, B, H, T)
  dq, dk, dv, dstate, dG, out, kept = _launch(
      plan, backward_kernel, interpret,
      out_type=(keys, keys, _array(v.dtype, *v.shape), _array(jnp.float32, B, H, K, V), rows, rows,
                _array(jnp.float32, tiles, B, H, N, K)),
      scratch_types=(slots(C, K), slots(C, K), slots(C, TILE), slots(C, TILE), slots(K, TILE),
                     _gate_slots(plan), plgpu.Barrier(num_arrivals=6, num_barriers=2),
                     tile(C, C), tile(C, C), tile(C, TILE), tile(C, TILE), tile(K, TILE),
                     slots(C, C, jnp.float32), plgpu.SMEM((2, C), jnp.float32),
                     plgpu.SMEM((K,), jnp.float32), plgpu.Barrier()))(
          q, k, v, do, states, gates_BHRT, dstate_BHKV)
  ungroup = lambda x: _tokens(plan, jnp.sum(x, axis=0)).reshape(B, plan.T, plan.G, -1, K).sum(3).astype(v.dtype)
  dg = None
  if inputs.g is not None:
    chunked = lambda x: jnp.sum(x, axis=0).reshape(B, H, N, C)
    last_BHRN = gates_BHRT[..., 0 if plan.reverse else C - 1::C]
    keep_BHN = jnp.exp(last_BHRN[:, :, 0]) * (last_BHRN[:, :, 2] if plan.packed else 1.0)
    exit_gate = jnp.sum(chunked(out), -1) + keep_BHN * jnp.sum(kept, axis=(0, -1))
    dg = lax.cumsum(chunked(dG), axis=3, reverse=not plan.reverse) + exit_gate[..., None]
    dg = _tokens(plan, jnp.swapaxes(dg.reshape(B, H, T), 1, 2))
  return Inputs(ungroup(dq), ungroup(dk), _tokens(plan, dv), dg, None, dstate, None)


def _array(dtype, *shape):
  return jax.ShapeDtypeStruct(shape, dtype)


def _launch(plan, kernel, interpret, **types):
  emulated = {} if interpret is None else dict(interpret=interpret)
  return plgpu.kernel(functools.partial(kernel, plan), grid=(plan.B, plan.H, plan.V // TILE),
                      grid_names=("batch", "head", "column"), compiler_params=PARAMS, **types, **emulated)


def _missing(plan):
  """(tokens before, tokens after) that fill the chunk processed last."""
  missing = -plan.T % C
  return (missing, 0) if plan.reverse else (0, missing)


def _whole_chunks(plan, x, mode="constant"):
  """Pads [B,T,...] with tokens that write nothing."""
  return jnp.pad(x, ((0, 0), _missing(plan)) + ((0, 0),) * (x.ndim - 2), mode=mode) if plan.T % C else x


def _tokens(plan, x):
  """Takes the padding off again."""
  before = _missing(plan)[0]
  return x[:, before:before + plan.T]


def _gates(plan, inputs):
  """[B,H,1,T] sums of the log decays inside a chunk up to and with each token, or [B,H,4,T] with segments."""
  T = -(-plan.T // C) * C
  G_BHT = jnp.zeros((plan.B, plan.H, T), jnp.float32)
  if inputs.g is not None:
    g_BHT = jnp.swapaxes(_whole_chunks(plan, inputs.g), 1, 2)
    G_BHT = lax.cumsum(g_BHT.reshape(plan.B, plan.H, -1, C), axis=3, reverse=plan.reverse).reshape(g_BHT.shape)
  if not plan.packed:
    return G_BHT[:, :, None]
  ids_BNC = _whole_chunks(plan, inputs.segments, mode="edge").reshape(plan.B, -1, C)
  if plan.reverse:
    last_BN1 = ids_BNC[..., :1]
    carried_BN1 = jnp.concatenate([last_BN1[:, 1:], ids_BNC[:, -1:, -1:]], axis=1)
  else:
    last_BN1 = ids_BNC[..., -1:]
    carried_BN1 = jnp.concatenate([ids_BNC[:, :1, :1], last_BN1[:, :-1]], axis=1)
  marks = jnp.stack([ids_BNC, ids_BNC == carried_BN1, ids_BNC == last_BN1], axis=1).astype(jnp.float32)
  marks = jnp.broadcast_to(marks.reshape(plan.B, 1, 3, T), (plan.B, plan.H, 3, T))
  return jnp.concatenate([G_BHT[:, :, None], marks], axis=2)


def _gate_slots(plan):
  return plgpu.SMEM((2, 4 if plan.packed else 1, C), jnp.float32)
