"""Four executions of one mixture of gated linear experts: y_n = sum_e gates[n, e] expert_e(x_n).

    expert_e(x) = (a(x W_gate,e) * (x W_up,e)) W_down,e

    dense            every expert on every token: the meaning, and the oracle of the others
    capacity         buffers of C tokens per expert; who comes later is dropped and adds nothing
    dropless         the choices sorted by expert, all of them, and multiplied group by group
    expert_parallel  `capacity` with the experts split over a mesh axis; tokens travel in two all-to-alls

All but `dense` move rows by gathers in both directions, so a sum over a token's experts is
taken in the order of its choices, and results repeat bit for bit.

References: Shazeer et al., 2017 (the mixture); Lepikhin et al., "GShard", 2021 (capacity, all-to-all: there
all first choices are served before any second); Riquelme et al., "Scaling Vision with Sparse Mixture of
Experts", 2021 (priority by gate); Gale et al., "MegaBlocks", 2023 (dropless).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from layers.activations import activation as named

# Dims: N tokens, D model width, F hidden width, E experts, K experts per token, C slots of an
# expert or of a block, S all slots, I blocks, J = K N choices, all first choices before any second.


def dense(x_ND, routing, weights, *, activation="silu"):
  """Runs every expert on every token.

  Args:
    x_ND: tokens.
    routing: a Routing.
    weights: (gate_EDF, up_EDF, down_EFD) in the dtype of x.
    activation: a name of layers/activations.py.

  Returns:
    (y_ND, share of choices that were dropped: 0).
  """
  gate_EDF, up_EDF, down_EFD = weights
  h_NEF = named(activation)(jnp.einsum("nd,edf->nef", x_ND, gate_EDF)) * jnp.einsum("nd,edf->nef", x_ND, up_EDF)
  h_NEF *= routing.gates_NE[..., None].astype(h_NEF.dtype)
  return jnp.einsum("nef,efd->nd", h_NEF, down_EFD), jnp.zeros(())


def slots(tokens: int, choices: int, experts: int, factor: float) -> int:
  """Returns C = ceil(factor K N / E), at most N: an expert serves a token once.

  Raises:
    ValueError: C would be 0.
  """
  C = min(tokens, math.ceil(factor * choices * tokens / experts))
  if C < 1:
    raise ValueError(f"capacity_factor={factor} leaves {tokens} tokens x {choices} choices on {experts} experts a "
                     "capacity of 0; take a factor above 0, or dispatch='dropless'.")
  return C


def capacity(x_ND, routing, weights, *, factor, priority="position", activation="silu"):
  """Runs each expert on the first C tokens that chose it; arguments and results as in `dense`.

  Args:
    factor: C over the even share K N / E; a router of variable choices counts as K = 1.
    priority: who comes first: "position" in the batch, or "gate", the token's largest one.
  """
  E = routing.gates_NE.shape[-1]
  C = slots(x_ND.shape[0], _number_of_choices(routing), E, factor)
  x_SD, slot_KN, gates_KN, kept, asked = _fill(x_ND, routing, C, priority)
  y_ECD = _experts(x_SD.reshape(E, C, -1), weights, activation)
  y_ND = _combine(y_ECD.reshape(E * C, -1), slot_KN, gates_KN)
  return y_ND, 1.0 - kept / jnp.maximum(asked, 1.0)


def dropless(x_ND, routing, weights, *, activation="silu"):
  """Runs each expert on exactly the tokens that chose it; arguments and results as in `dense`.

  On a CPU by `blocks`, elsewhere by `grouped`.

  Raises:
    ValueError: the router chooses a variable number of experts.
  """
  if routing.indices_NK is None:
    raise ValueError("dispatch='dropless' needs a fixed number of experts per token, and this router's varies; "
                     "take dispatch='dense' or 'capacity'.")
  run = lambda form: functools.partial(form, activation=activation)
  args = x_ND, routing.gates_NE, routing.indices_NK, weights
  return jax.lax.platform_dependent(*args, cpu=run(blocks), default=run(grouped)), jnp.zeros(())


def grouped(x_ND, gates_NE, indices_NK, weights, *, activation="silu"):
  """Returns y_ND: the choices in a stable order by expert, one grouped matrix product for all experts."""
  gate_EDF, up_EDF, down_EFD = weights
  (N, K), E = indices_NK.shape, gate_EDF.shape[0]
  expert_J = indices_NK.T.reshape(-1)
  order_J = jnp.argsort(expert_J, stable=True)
  place_KN = jnp.argsort(order_J).reshape(K, N)
  sizes_E = jnp.sum(jax.nn.one_hot(expert_J, E, dtype=jnp.int32), axis=0)
  x_JD = take(x_ND, order_J % N, place_KN)
  product = lambda rows, kernels: jax.lax.ragged_dot(rows, kernels, sizes_E)
  h_JF = named(activation)(product(x_JD, gate_EDF)) * product(x_JD, up_EDF)
  return _combine(product(h_JF, down_EFD), place_KN, _chosen(gates_NE, indices_NK))


def blocks(x_ND, gates_NE, indices_NK, weights, *, activation="silu"):
  """Returns y_ND: the choices in blocks of C = K N / E rows, each with a copy of the kernels of its expert.

  An expert with n choices fills ceil(n / C) blocks, so 2 E blocks hold all choices however they
  are spread, at twice the arithmetic of an even load. A grouped product on a CPU costs as
  much as every expert on every token. Forward and backward at N 4096, D = F 256, K 2 on two busy cores, best of
  3, in seconds at E 16 and 32: dense 6.4 and 10.2, grouped 8.2 and 9.2, blocks 1.3 and 1.7, capacity 0.7 and 1.0.
  """
  (N, K), E = indices_NK.shape, gates_NE.shape[1]
  C = math.ceil(K * N / E)
  expert_J = indices_NK.T.reshape(-1)
  place_J, count_E = _places(expert_J, jnp.ones_like(expert_J), E)
  used_E = -(-count_E // C)
  stop_E = jnp.cumsum(used_E)
  slot_J = ((stop_E - used_E)[expert_J] + place_J // C) * C + place_J % C
  expert_I = jnp.minimum(jnp.searchsorted(stop_E, jnp.arange(2 * E), side="right"), E - 1)
  slot_KN = slot_J.reshape(K, N)
  x_SD = _gather(x_ND, slot_KN, 2 * E * C)
  weights = jax.tree.map(lambda kernel: kernel[expert_I], weights)
  y_ICD = _experts(x_SD.reshape(2 * E, C, -1), weights, activation)
  return _combine(y_ICD.reshape(2 * E * C, -1), slot_KN, _chosen(gates_NE, indices_NK))


def expert_parallel(x_ND, routing, weights, *, mesh, axis="expert", rows=("data", "fsdp"), factor, priority="position",
                    activation="silu"):
  """`capacity`, the experts and the tokens split over a mesh axis; each device has buffers of its own tokens.

  Args:
    mesh: device mesh; axes besides `axis` and `rows` stay with the partitioner.
    axis: its axis, which must divide both experts and tokens.
    rows: axes over which tokens are split before `axis` splits them, where the mesh has them.

  Raises:
    ValueError: the mesh lacks the axis, or it does not divide experts or tokens.
  """
  if axis not in mesh.axis_names:
    raise ValueError(f"dispatch='expert_parallel' needs a mesh with an axis {axis!r}, this one has "
                     f"{', '.join(mesh.axis_names) or 'none'}; call it under jax.set_mesh, or take dispatch='capacity'.")
  rows = _rows(mesh, axis, rows)
  shard, (N, E) = shards(mesh, axis, rows), routing.gates_NE.shape
  for name, size, over, of in (("experts", E, mesh.shape[axis], (axis,)), ("tokens", N, shard, rows)):
    if size % over:
      raise ValueError(f"{name}={size} must be a multiple of the {over} devices of mesh axis {' x '.join(map(repr, of))}; "
                       "change the number, or take dispatch='capacity'.")
  C = slots(N // shard, _number_of_choices(routing), E, factor)

  def local(x_ND, routing, weights):
    x_SD, slot_KN, gates_KN, kept, asked = _fill(x_ND, routing, C, priority)
    swap = functools.partial(jax.lax.all_to_all, axis_name=axis, tiled=True)
    x_ECD = swap(x_SD.reshape(E, C, -1), split_axis=0, concat_axis=1)
    y_ECD = swap(_experts(x_ECD, weights, activation), split_axis=1, concat_axis=0)
    y_ND = _combine(y_ECD.reshape(E * C, -1), slot_KN, gates_KN)
    return y_ND, jnp.stack([kept, asked])[None]

  split = PartitionSpec(rows)
  run = jax.shard_map(local, mesh=mesh, in_specs=(split, split, PartitionSpec(axis)), out_specs=split, axis_names={*rows})
  y_ND, counts_P2 = run(x_ND, routing._replace(losses={}, stats={}, carry=None), weights)
  kept, asked = jnp.sum(counts_P2, axis=0)
  return y_ND, 1.0 - kept / jnp.maximum(asked, 1.0)


def shards(mesh, axis="expert", rows=("data", "fsdp")) -> int:
  """Returns the number of parts that `expert_parallel` splits tokens into."""
  return math.prod(mesh.shape[name] for name in _rows(mesh, axis, rows))


def _rows(mesh, axis, rows):
  return (*(name for name in rows if name in mesh.axis_names and name != axis), axis)


def _number_of_choices(routing) -> int:
  return 1 if routing.indices_NK is None else routing.indices_NK.shape[1]


def _experts(x_ECD, weights, activation):
  gate_EDF, up_EDF, down_EFD = weights
  product = functools.partial(jnp.einsum, "ecd,edf->ecf")
  return product(named(activation)(product(x_ECD, gate_EDF)) * product(x_ECD, up_EDF), down_EFD)


def _fill(x_ND, routing, C, priority):
  """Returns (x_SD of the slots, slot of each choice [K, N], its gate, choices kept, choices asked for)."""
  N, E = routing.gates_NE.shape
  indices_NK = routing.indices_NK
  if indices_NK is None:
    indices_NK = jnp.broadcast_to(jnp.arange(E), (N, E))
  gates_KN, K = _chosen(routing.gates_NE, indices_NK), indices_NK.shape[1]
  if priority == "position":
    first_N = back_N = jnp.arange(N)
  elif priority == "gate":
    first_N = jnp.argsort(-jnp.max(routing.gates_NE, axis=1), stable=True)
    back_N = jnp.argsort(first_N)
  else:
    raise ValueError(f"priority={priority!r} is unknown; choose from position, gate.")
  queue_J = indices_NK.T[:, first_N].reshape(-1)
  asks_J = gates_KN[:, first_N].reshape(-1) != 0
  place_J, _ = _places(queue_J, asks_J, E)
  kept_J = asks_J & (place_J < C)
  # Slot E C does not exist: what is sent there, or asked of it, is dropped.
  slot_KN = jnp.where(kept_J, queue_J * C + place_J, E * C).reshape(K, N)[:, back_N]
  count = lambda flags: jnp.sum(flags, dtype=jnp.float32)
  return _gather(x_ND, slot_KN, E * C), slot_KN, gates_KN, count(kept_J), count(asks_J)


def _chosen(gates_NE, indices_NK):
  """Returns [K, N], the gates of the choices."""
  return jnp.take_along_axis(gates_NE, indices_NK, axis=1).T


def _places(expert_J, asks_J, E):
  """Returns (how many earlier choices want the same expert [J], how many want each expert [E])."""
  hot_JE = jax.nn.one_hot(expert_J, E, dtype=jnp.int32) * asks_J[:, None]
  count_JE = jnp.cumsum(hot_JE, axis=0)
  return jnp.take_along_axis(count_JE, expert_J[:, None], axis=1)[:, 0] - 1, count_JE[-1]


def _gather(x_ND, slot_KN, S):
  """Returns [S, D]: every token copied to the slots of its choices, zeros in slots without one."""
  N = x_ND.shape[0]
  source_S = jnp.full(S, N).at[slot_KN].set(jnp.arange(N)[None], mode="drop")
  return take(x_ND, source_S, slot_KN)


def _combine(y_SD, slot_KN, gates_KN):
  """Returns [N, D], for every token the weighted sum of what its choices made of it."""
  K, N = slot_KN.shape
  slot_J = slot_KN.reshape(-1)
  place_S = jnp.full(y_SD.shape[0], K * N).at[slot_J].set(jnp.arange(K * N), mode="drop")
  y_KND = take(y_SD, slot_J, place_S[None]).reshape(K, N, -1)
  return jnp.sum(y_KND * gates_KN[..., None].astype(y_KND.dtype), axis=0)


@jax.custom_vjp
def take(rows_RD, index_S, used_JR):
  """Returns rows_RD[index_S], zeros where the index is R; its transpose is a gather too, not a scatter.

  Args:
    rows_RD: rows.
    index_S: row of each result.
    used_JR: the inverse: for each row the up to J results that are copies of it, S where there is none.
  """
  del used_JR
  return rows_RD.at[index_S].get(mode="fill", fill_value=0)


def _take_forward(rows_RD, index_S, used_JR):
  return take(rows_RD, index_S, used_JR), used_JR


def _take_backward(used_JR, dy_SD):
  return jnp.sum(dy_SD.at[used_JR].get(mode="fill", fill_value=0), axis=0), None, None


take.defvjp(_take_forward, _take_backward)
