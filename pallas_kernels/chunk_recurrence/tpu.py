"""The fused Mosaic TPU kernels: one pallas_call per direction, state in VMEM.

The grid is (B, H / hp, N): sequences and groups of hp heads in parallel, chunks in order. A step reads
flat [1, C, heads * width] blocks of [B, T, heads * width] arrays, the only layout that needs no copies,
and carries hp states (or their cotangents) in float32 scratch. One number per token and head travels as
a row of C lanes; cumulative sums of scalar gates, and their transpose, are left to XLA.

Compiled ahead of time for v5e, v5p and v6e; never run on a TPU. The numbers are checked in interpret mode.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence import tpu_backward, tpu_chunk
from pallas_kernels.chunk_recurrence.plan import Inputs, Plan
from pallas_kernels.chunk_recurrence.tpu_layout import (
    choose_tiling, pack, pack_gates, refuse, Tiling, unpack_state, unpack_tokens)
from pallas_kernels.chunk_recurrence.tpu_matrix import positions

# Dims: B batch, T tokens, H heads of a grid step, C chunk, K key width, V value width, N chunks.


def why_not(plan: Plan, platform: str) -> str | None:
  """Reason why this backend cannot run `plan` on `platform`, or None."""
  if platform != "tpu":
    return "it needs a TPU; backend='interpret' runs the same kernels here, slowly"
  return refuse(plan)


def forward(plan: Plan, inputs: Inputs, interpret: bool = False):
  """Runs the recurrence.

  Args:
    plan: the static half of the call; without save_states="save" no chunk states are written.
    inputs: canonical arrays.
    interpret: whether to emulate the kernel on any device.

  Returns:
    (o_BTHV, final state_BHKV, entry states of the chunks [N,B,H,K,V] or None).
  """
  tiling = choose_tiling(plan)
  packed = pack(plan, tiling, inputs)
  results = ["o", "final"] + (["states"] if plan.save_states == "save" else [])
  out = _call(_forward_kernel, plan, tiling, packed, results, plan.reverse, interpret)
  states = unpack_state(plan, out["states"]) if "states" in out else None
  return unpack_tokens(plan, out["o"], plan.H, plan.V), unpack_state(plan, out["final"]), states


def backward(plan: Plan, inputs: Inputs, states, do_BTHV, dstate_BHKV, interpret: bool = False) -> Inputs:
  """Gradients of every array of `inputs`.

  Args:
    plan, inputs, interpret: as in `forward`.
    states: what `forward` returned, or None to run the states again.
    do_BTHV, dstate_BHKV: cotangents of the output and of the final state.

  Returns:
    Cotangents in the shape of `inputs`, None for the segment ids.
  """
  tiling = choose_tiling(plan)
  packed = pack(plan, tiling, inputs)
  if states is None:
    again = {name: x for name, x in packed.items() if name != "q"}
    states = _call(_states_kernel, plan, tiling, again, ["states"], plan.reverse, interpret)["states"]
  else:
    states = tiling.pad_state(states)
  operands = {name: x for name, x in packed.items() if name != "state"} | {
      "states": states, "do": tiling.pad_tokens(do_BTHV.astype(inputs.v.dtype), tiling.V),
      "dfinal": tiling.pad_state(dstate_BHKV)}
  gates = [name for name in ("rows", "g") if name in packed]
  results = ["dq", "dk", "dv", "dstate"] + [f"d{name}" for name in gates]
  out = _call(_backward_kernel, plan, tiling, operands, results, not plan.reverse, interpret)
  _, pull = jax.vjp(functools.partial(pack_gates, plan, tiling), inputs.g, inputs.beta)
  dg, dbeta = pull({name: out[f"d{name}"] for name in gates})
  keys = lambda dx: unpack_tokens(plan, tiling.sum_groups(dx), plan.G, plan.K).astype(inputs.q.dtype)
  return Inputs(keys(out["dq"]), keys(out["dk"]), unpack_tokens(plan, out["dv"], plan.H, plan.V), dg, dbeta,
                unpack_state(plan, out["dstate"]), None)


def _call(kernel, plan, tiling: Tiling, operands, results, backwards, interpret):
  """Runs `kernel(refs by name)` over the grid; `backwards` takes the chunks last to first."""
  names = (*operands, *results)
  specs = {name: tiling.block(name, backwards) for name in names}
  varying = jax.typeof(operands["k"]).manual_axis_type
  shapes = [jax.ShapeDtypeStruct(*tiling.array(name), manual_axis_type=varying) for name in results]

  def body(*refs):
    kernel(plan, tiling, dict(zip((*names, "scratch"), refs)))

  out = pl.pallas_call(
      body, grid=tiling.grid, out_shape=shapes, in_specs=[specs[n] for n in operands],
      out_specs=[specs[n] for n in results],
      scratch_shapes=[pltpu.VMEM((tiling.hp, tiling.K, tiling.V), jnp.float32)],
      compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
      interpret=interpret, name=f"chunk_recurrence{kernel.__name__[:-7]}")(*operands.values())
  return dict(zip(results, out))


def _forward_kernel(plan, tiling, refs):
  S = _carried(refs, "state")
  if "states" in refs:
    refs["states"][0, 0] = S.astype(refs["states"].dtype)
  rows, gate, place = _load(plan, tiling, refs)
  o, S = tpu_chunk.forward(rows, gate, S, place, plan.scale, tiling.fed)
  refs["o"][0] = _join(o).astype(refs["o"].dtype)
  refs["scratch"][...] = S
  _store_last(refs, "final", S)


def _states_kernel(plan, tiling, refs):
  S = _carried(refs, "state")
  refs["states"][0, 0] = S.astype(refs["states"].dtype)
  rows, gate, place = _load(plan, tiling, refs)
  refs["scratch"][...] = tpu_chunk.states_only(rows, gate, S, place, tiling.fed)


def _backward_kernel(plan, tiling, refs):
  dS = _carried(refs, "dfinal")
  rows, gate, place = _load(plan, tiling, refs)
  do = _split(refs["do"][0], tiling.hp)
  S = refs["states"][0, 0].astype(jnp.float32)
  d = tpu_backward.backward(rows, gate, S, do, dS, place, plan.scale, tiling.fed)
  for name, dx in (("dq", d.q_HCK), ("dk", d.k_HCK)):
    refs[name][0] = _join(_sum_keys(dx, tiling.kb)).astype(refs[name].dtype)
  refs["dv"][0] = _join(d.v_HCV).astype(refs["dv"].dtype)
  if "dg" in refs:
    refs["dg"][0] = _join(d.gate)
  if "drows" in refs:
    refs["drows"][0, 0, 0] = _gate_rows(plan, d, place)
  refs["scratch"][...] = d.S_HKV
  _store_last(refs, "dstate", d.S_HKV)


def _carried(refs, first):
  """What the scratch holds, after filling it from `first` at the first chunk."""
  @pl.when(pl.program_id(2) == 0)
  def _():
    refs["scratch"][...] = refs[first][0]

  return refs["scratch"][...]


def _store_last(refs, name, S_HKV):
  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    refs[name][0] = S_HKV


def _load(plan, tiling, refs):
  q, k = (_spread(_split(refs[n][0], tiling.kb), tiling.hp) if n in refs else None for n in ("q", "k"))
  v = _split(refs["v"][0], tiling.hp)
  place = positions(v.shape[1], plan.reverse)
  g = _split(refs["g"][0], tiling.hp) if "g" in refs else None
  cumulative = beta = None
  if "rows" in refs:
    rows_RC = refs["rows"][0, 0, 0]
    cumulative = rows_RC[:tiling.hp] if plan.decay == "scalar" else None
    beta = rows_RC[-tiling.hp:] if plan.delta else None
  segment = refs["segments"][0, 0] if "segments" in refs else None
  rows = tpu_chunk.Rows(k if q is None else q, k, v)
  return rows, tpu_chunk.gates(cumulative, g, beta, segment, place), place


def _gate_rows(plan, d, place):
  columns = []
  if plan.decay == "scalar":
    last = (place.row_C1 == place.row_C1.shape[0] - 1)[None]
    gate_HC1 = d.gate + jnp.where(last, d.gate_exit_H11, 0.0)
    columns += [gate_HC1[h] for h in range(gate_HC1.shape[0])]
  if plan.delta:
    columns += [d.beta_HC1[h] for h in range(d.beta_HC1.shape[0])]
  return jnp.concatenate(columns, axis=1).T


def _split(x, heads):
  """[C, heads * D] to [heads, C, D]: whole tiles of lanes for D = 128 and more."""
  D = x.shape[1] // heads
  return jnp.stack([x[:, h * D:(h + 1) * D] for h in range(heads)])


def _join(x_HCD):
  return jnp.concatenate([x_HCD[h] for h in range(x_HCD.shape[0])], axis=1)


def _spread(x, heads):
  """Repeats each key head for its value heads."""
  repeats = heads // x.shape[0]
  return x if repeats == 1 else jnp.stack([x[h // repeats] for h in range(heads)])


def _sum_keys(x_HCK, key_heads):
  repeats = x_HCK.shape[0] // key_heads
  if repeats == 1:
    return x_HCK
  return jnp.stack([functools.reduce(jnp.add, [x_HCK[g * repeats + i] for i in range(repeats)])
                    for g in range(key_heads)])
