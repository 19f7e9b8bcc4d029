"""The recurrence as Pallas kernels lowered through Triton, for jax versions that still do.

Lowered for cuda on a CPU and run in interpret mode; never run on a GPU.

Grid (B, H, V / tile): a program walks all chunks of one head with a K x tile state in registers.

                 reads per token          writes per token
    forward      q, k, g, beta, v-tile    o-tile, and per chunk the K x tile entry state
    backward     the same, do-tile,       dv-tile, and float32 parts of dq, dk, dg, dbeta that are
                 entry states             summed over tiles (and over the value heads of a key head) by XLA

Arrays stay [B,T,heads,width]: loads and stores are masked, so a T that is no multiple of the chunk costs
no copy, and reversed order renames rows. Widths that are no power of two are padded. The erase matrix of
the delta rule is inverted by each tile again: with V <= 64 there is one.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence import triton_chunk
from pallas_kernels.chunk_recurrence.plan import Inputs, Plan
from pallas_kernels.compat import pallas_triton

# Dims: B batch, T tokens, H value heads, G key heads, K key width, V value width, N chunks, C rows of a chunk.

SMALLEST = 16  # side of a matmul in Triton
TILE = 64  # value channels per program
LONGEST_CHUNK, WIDEST = 128, 256
DTYPES = ("float32", "bfloat16", "float16")


def why_not(plan: Plan, platform: str) -> str | None:
  """Reason why these kernels cannot run `plan` on `platform`, or None."""
  if pallas_triton is None:
    return "this jax no longer lowers Pallas kernels through Triton"
  if platform != "gpu":
    return "Triton kernels need an NVIDIA GPU"
  if plan.dtype not in DTYPES:
    return f"Triton kernels take {', '.join(DTYPES)}, not {plan.dtype}"
  if plan.chunk > LONGEST_CHUNK or max(plan.K, plan.V) > WIDEST:
    return (f"chunk={plan.chunk}, K={plan.K}, V={plan.V} exceed what a program can hold, "
            f"chunk={LONGEST_CHUNK} and widths of {WIDEST}")
  return None


def forward(plan: Plan, inputs: Inputs, *, interpret=False):
  """Runs the recurrence.

  Args:
    plan: the static half of the call.
    inputs: canonical arrays.
    interpret: whether to emulate the kernel.

  Returns:
    (o_BTHV in v's dtype, final state_BHKV, entry states [N,B,H,K,V] in v's dtype, or None unless
    `plan.save_states` is "save").
  """
  saved = plan.save_states == "save"
  o, final, states = _launch_forward(plan, inputs, saved, interpret)
  return o, final, states


def backward(plan: Plan, inputs: Inputs, states, do_BTHV, dstate_BHKV, *, interpret=False) -> Inputs:
  """Gradients of every array of `inputs`.

  Args:
    plan, inputs, interpret: as in `forward`.
    states: what `forward` returned, or None to run the states again.
    do_BTHV, dstate_BHKV: cotangents of the output and of the final state.

  Returns:
    Cotangents in the shape of `inputs`, None for the segment ids.
  """
  if states is None:
    _, _, states = _launch_forward(plan, inputs, True, interpret)
  K, V, tile = _sides(plan)
  B, T, H = inputs.v.shape[:3]
  tiles = V // tile
  wide = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  parts = lambda x, *width: None if x is None else wide(tiles, B, T, H, *width)
  gate_width = (K,) if plan.decay == "vector" else ()
  outputs = Inputs(parts(inputs.q, K), parts(inputs.k, K), jax.ShapeDtypeStruct((B, T, H, V), inputs.v.dtype),
                   parts(inputs.g, *gate_width), parts(inputs.beta), wide(B, H, K, V), None)
  grads = _call(plan, functools.partial(_backward_kernel, plan, tile), outputs, (B, H, tiles), interpret)(
      _widen(plan, inputs), _pad(_pad(states, -2, K), -1, V), _pad(do_BTHV.astype(inputs.v.dtype), -1, V),
      _pad(_pad(dstate_BHKV, -2, K), -1, V))

  total = lambda x: jnp.sum(x, axis=0)
  group = lambda x: total(x)[..., :plan.K].reshape(B, T, plan.G, -1, plan.K)
  keys = lambda x, like: jnp.sum(group(x), axis=3).astype(like.dtype)
  gate = None if inputs.g is None else total(grads.g)
  if plan.decay == "vector":
    gate = gate[..., :plan.K]
  return Inputs(keys(grads.q, inputs.q), keys(grads.k, inputs.k), grads.v[..., :plan.V], gate,
                None if inputs.beta is None else total(grads.beta), grads.state[:, :, :plan.K, :plan.V], None)


def _forward_kernel(plan, tile, inputs, o_ref, final_ref, states_ref):
  b, h, column = pl.program_id(0), pl.program_id(1), pl.program_id(2)
  columns = pl.ds(column * tile, tile)

  def chunk(n, S_KV):
    if states_ref is not None:
      states_ref[n, b, h, :, columns] = S_KV.astype(states_ref.dtype)
    arrays, segment = _read(plan, inputs, n, b, h, columns)
    (o_CV, S_KV), _ = _step(plan, arrays, S_KV, segment)
    rows, valid_C1 = _rows(plan, n)
    _store(o_ref.at[b, rows, h, columns], o_CV, valid_C1)
    return S_KV

  final_ref[b, h, :, columns] = lax.fori_loop(0, plan.chunks, chunk, inputs.state[b, h, :, columns])


def _backward_kernel(plan, tile, inputs, states_ref, do_ref, dfinal_ref, *grads):
  grads = Inputs(*grads)
  b, h, column = pl.program_id(0), pl.program_id(1), pl.program_id(2)
  columns = pl.ds(column * tile, tile)

  def chunk(i, dS_KV):
    n = plan.chunks - 1 - i
    arrays, segment = _read(plan, inputs, n, b, h, columns)
    rows, valid_C1 = _rows(plan, n)
    S_KV = states_ref[n, b, h, :, columns].astype(jnp.float32)
    do_CV = _load(do_ref.at[b, rows, h, columns], valid_C1).astype(jnp.float32)
    _, pull = _step(plan, arrays, S_KV, segment)
    dq, dk, dv, dg, dbeta, dS_KV = pull((do_CV, dS_KV))
    _store(grads.q.at[column, b, rows, h, :], dq, valid_C1)
    _store(grads.k.at[column, b, rows, h, :], dk, valid_C1)
    _store(grads.v.at[b, rows, h, columns], dv, valid_C1)
    if plan.decay == "vector":
      _store(grads.g.at[column, b, rows, h, :], dg, valid_C1)
    elif plan.decay == "scalar":
      _store(grads.g.at[column, b, rows, h], dg, valid_C1)
    if plan.delta:
      _store(grads.beta.at[column, b, rows, h], dbeta, valid_C1)
    return dS_KV

  dS_KV = dfinal_ref[b, h, :, columns]
  grads.state[b, h, :, columns] = lax.fori_loop(0, plan.chunks, chunk, dS_KV)


def _step(plan, arrays, S_KV, segment):
  """((o_CV, exit state), function from their cotangents to those of the arrays and the entry state)."""
  step = functools.partial(triton_chunk.step, scale=plan.scale, vector=plan.decay == "vector",
                           reverse=plan.reverse)
  return jax.vjp(lambda *x: step(*x, *segment), *arrays, S_KV)


def _read(plan, inputs, n, b, h, columns):
  """((q_CK, k_CK, v_CV, g_CW, beta_C1), (segment_C1, carried)) of chunk n; rows without a token are zero."""
  rows, valid_C1 = _rows(plan, n)
  fed = jnp.float32 if plan.precision == "highest" else plan.dtype
  key_head = lax.div(h, plan.H // plan.G)
  q_CK = _load(inputs.q.at[b, rows, key_head, :], valid_C1).astype(fed)
  k_CK = _load(inputs.k.at[b, rows, key_head, :], valid_C1).astype(fed)
  v_CV = _load(inputs.v.at[b, rows, h, columns], valid_C1).astype(fed)
  g_CW = beta_C1 = segment_C1 = carried = None
  if plan.decay == "vector":
    g_CW = _load(inputs.g.at[b, rows, h, :], valid_C1)
  elif plan.decay == "scalar":
    g_CW = _load(inputs.g.at[b, rows, h], valid_C1)
  if plan.delta:
    beta_C1 = _load(inputs.beta.at[b, rows, h], valid_C1)
  if plan.packed:
    at = lambda place: inputs.segments[b, plan.T - 1 - place if plan.reverse else place]
    carried = at(jnp.maximum(n * plan.chunk - 1, 0))
    last = at(jnp.minimum((n + 1) * plan.chunk, plan.T) - 1)
    segment_C1 = jnp.where(valid_C1, _load(inputs.segments.at[b, rows], valid_C1), last)
  return (q_CK, k_CK, v_CV, g_CW, beta_C1), (segment_C1, carried)


def _rows(plan, n):
  """(slice of the tokens of chunk n, which of its rows are tokens of the chunk)."""
  C, T = plan.chunk, plan.T
  size = max(C, SMALLEST)
  start, stop = n * C, jnp.minimum((n + 1) * C, T)
  if plan.reverse:
    start, stop = jnp.maximum(T - (n + 1) * C, 0), T - n * C
  return pl.ds(start, size), start + lax.broadcasted_iota(jnp.int32, (size, 1), 0) < stop


def _load(ref, valid_C1):
  """Rows [C,width] of `ref`, or a column [C,1] of a [C] one; zero in rows that are not valid."""
  mask = _like(valid_C1, ref.shape)
  x = pallas_triton.load(ref, mask=mask, other=jnp.zeros((), ref.dtype))
  return x[:, None] if x.ndim == 1 else x


def _store(ref, x_CW, valid_C1):
  """Writes the valid rows of x, a column into a [C] ref."""
  if len(ref.shape) == 1:
    x_CW = jnp.sum(x_CW, axis=1)
  pallas_triton.store(ref, x_CW.astype(ref.dtype), mask=_like(valid_C1, ref.shape))


def _like(valid_C1, shape):
  return jnp.broadcast_to(valid_C1, shape) if len(shape) == 2 else valid_C1.reshape(shape)


def _launch_forward(plan, inputs, saved, interpret):
  K, V, tile = _sides(plan)
  B, T, H = inputs.v.shape[:3]
  array, dtype = jax.ShapeDtypeStruct, inputs.v.dtype
  outputs = (array((B, T, H, V), dtype), array((B, H, K, V), jnp.float32),
             array((plan.chunks, B, H, K, V), dtype) if saved else None)
  o, final, states = _call(plan, functools.partial(_forward_kernel, plan, tile), outputs,
                           (B, H, V // tile), interpret)(_widen(plan, inputs))
  states = None if states is None else states[..., :plan.K, :plan.V]
  return o[..., :plan.V], final[..., :plan.K, :plan.V], states


def _call(plan, kernel, outputs, grid, interpret):
  # Without parameters of its own, each jax version picks a GPU backend to its taste.
  wide = max(_sides(plan)[:2]) > 64
  params = pallas_triton.CompilerParams(num_warps=8 if wide else 4, num_stages=1)
  return pl.pallas_call(kernel, out_shape=outputs, grid=grid, compiler_params=params, interpret=interpret)


def _sides(plan):
  """(K, V, value channels per program) as the kernels see them: powers of two from 16."""
  power = lambda n: max(SMALLEST, 1 << (n - 1).bit_length())
  V = power(plan.V)
  return power(plan.K), V, min(V, TILE)


def _widen(plan, inputs):
  K, V, _ = _sides(plan)
  g = _pad(inputs.g, -1, K) if plan.decay == "vector" else inputs.g
  return Inputs(_pad(inputs.q, -1, K), _pad(inputs.k, -1, K), _pad(inputs.v, -1, V), g, inputs.beta,
                _pad(_pad(inputs.state, -2, K), -1, V), inputs.segments)


def _pad(x, axis, width):
  if x.shape[axis] == width:
    return x
  pads = [(0, 0)] * x.ndim
  pads[axis] = (0, width - x.shape[axis])
  return jnp.pad(x, pads)
