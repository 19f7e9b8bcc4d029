"""One sequence over many devices: each holds a stretch of tokens, one all-gather joins their states.

A stretch of a linear recurrence acts on the state that enters it as S -> p S + M, with M the state it
leaves when it starts from zero and p its total decay (a K x K matrix under the delta rule). So:

    1. every device runs its own stretch from zero and obtains (p, M);
    2. one all-gather exchanges them: K x (V + 1) numbers per head, K x (V + K) with the delta rule,
       independent of the number of tokens;
    3. every device folds those before it into the state that enters its own stretch;
    4. it runs its stretch again from there (the elementwise scan only adds the missing part).

The transpose of an all-gather is a reduce-scatter, so gradients need no rule of their own.

The functions below are called inside `jax.shard_map`; `over` wraps them for whole arrays.

Reference: Sun et al., "LASP-2: Rethinking Sequence Parallelism for Linear Attention and Its Hybrid",
2025, algorithm 2; the delta rule's matrix-valued p is not in it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pallas_kernels import chunk_recurrence as chunked
from pallas_kernels import diag_scan as diagonal

# Dims: R ranks along the axis, B batch, T local tokens, H heads, K key width, V value width, D channels.


def chunk_recurrence(q, k, v, g=None, beta=None, *, axis_name, initial_state=None, reverse=False,
                     scale=None, chunk=None, backend="auto", precision="mixed"):
  """`chunk_recurrence` on this device's stretch of the sequence; segments are not supported.

  Args:
    q, k, v, g, beta: local stretches, [B,T,heads,width] and so on.
    axis_name: mesh axis along which the tokens are split, in order.
    initial_state: state before the first token of the whole sequence, the same on every device.
    reverse: takes the tokens last to first.
    scale, chunk, backend, precision: as in `chunk_recurrence`.

  Returns:
    (local o_BTHV, state after this device's own tokens: the global final state on the last device,
    on the first if `reverse`).
  """
  B, _, H, V = v.shape
  K = k.shape[-1]
  run = functools.partial(chunked.chunk_recurrence, reverse=reverse, return_final_state=True, scale=scale,
                          chunk=chunk, backend=backend, precision=precision)
  if beta is None:
    _, M_BHKV = run(q, k, v, g, None)
    p_BHKW = _total_decay(g, M_BHKV)
  else:
    # The transition is what the stretch makes of the identity while it writes nothing.
    wide_v = jnp.concatenate([v, jnp.zeros((*v.shape[:-1], K), v.dtype)], axis=-1)
    start = jnp.concatenate([jnp.zeros((B, H, K, V)), jnp.broadcast_to(jnp.eye(K), (B, H, K, K))], axis=-1)
    _, both = run(q, k, wide_v, g, beta, initial_state=start)
    M_BHKV, p_BHKW = both[..., :V], both[..., V:]

  def advance(S_BHKV, packed):
    M, p = packed[..., :V], packed[..., V:]
    if beta is None:
      return p * S_BHKV + M
    return jnp.einsum("bhij,bhjv->bhiv", p, S_BHKV, precision=jax.lax.Precision.HIGHEST) + M

  if initial_state is None:
    initial_state = jnp.zeros_like(M_BHKV)
  packed = jnp.concatenate([M_BHKV, p_BHKW], axis=-1)
  entry = _entry_state(advance, packed, initial_state.astype(M_BHKV.dtype), axis_name, reverse)
  return run(q, k, v, g, beta, initial_state=entry)


def diag_scan(a, x, *, axis_name, h0=None, reverse=False, backend="auto"):
  """`diag_scan` on this device's stretch of the sequence; arguments and results as there.

  Args:
    a, x: local stretches, [B,T,*channels]; a also [*channels].
    axis_name: mesh axis along which the tokens are split, in order.
    h0: [B,*channels] before the first token of the whole sequence, the same on every device.
    reverse: takes the tokens last to first.
    backend: as in `diag_scan`.
  """
  run = functools.partial(diagonal.diag_scan, reverse=reverse, backend=backend)
  h, M = run(a, x)
  # The running product of a is the same scan with nothing added and 1 at the start.
  product, p = run(a, jnp.zeros_like(x, M.dtype), h0=jnp.ones_like(M))
  if h0 is None:
    h0 = jnp.zeros_like(M)
  advance = lambda state, packed: packed[1] * state + packed[0]
  entry = _entry_state(advance, jnp.stack([M, p]), h0.astype(M.dtype), axis_name, reverse)
  return (h.astype(M.dtype) + product * entry[:, None]).astype(h.dtype), M + p * entry


def over(mesh, axis_name, function):
  """Wraps one of the two functions above for whole arrays, split over `axis_name` of `mesh`.

  Args:
    mesh: device mesh.
    axis_name: its axis for tokens; the token count must be a multiple of its size.
    function: `function(arrays, state)` that runs inside, with `arrays` a pytree of [B,T,...] stretches
      and `state` the replicated initial state; returns (local output, local final state).

  Returns:
    A function of whole `(arrays, state)` returning (whole output, the final state of each device
    stacked on a leading axis R).
  """
  split = PartitionSpec(None, axis_name)

  def local(arrays, state):
    y, final = function(arrays, state)
    return y, final[None]

  sharded = jax.shard_map(local, mesh=mesh, in_specs=(split, PartitionSpec()),
                          out_specs=(split, PartitionSpec(axis_name)))

  def whole(arrays, state):
    ranks = mesh.shape[axis_name]
    for x in jax.tree.leaves(arrays):
      if x.shape[1] % ranks:
        raise ValueError(f"T={x.shape[1]} must be a multiple of the {ranks} devices along "
                         f"{axis_name!r}; pad the sequence.")
    return sharded(arrays, state)

  return whole


def _total_decay(g, M_BHKV):
  """exp of the summed log decay as a column [B,H,K,1] beside the state."""
  column = M_BHKV[..., :1]
  if g is None:
    return jnp.ones_like(column)
  total = jnp.exp(jnp.sum(g.astype(M_BHKV.dtype), axis=1))
  total = total[..., None, None] if g.ndim == 3 else total[..., None]
  return jnp.broadcast_to(total, column.shape)


def _entry_state(advance, packed, state, axis_name, reverse):
  """The state that enters this device's stretch, from one all-gather of what every stretch does."""
  stretches = jax.lax.all_gather(packed, axis_name)
  ranks = range(stretches.shape[0])
  rank = jax.lax.axis_index(axis_name)
  entry = jnp.zeros_like(packed[..., :state.shape[-1]] if packed.ndim == state.ndim else packed[0])
  for r in reversed(ranks) if reverse else ranks:
    entry = jnp.where(rank == r, state, entry)
    state = advance(state, stretches[r])
  return entry
