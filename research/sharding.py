"""Where arrays live: one mesh, and rules from axis names to mesh axes.

The mesh has the axes data, fsdp, tensor, expert and sequence, of the sizes in
`config.mesh` (data = 0 takes what the others leave). A batch is split over data,
fsdp and expert; a parameter over fsdp, tensor and expert by the names of its axes
(research/parameters.py). The partitioner inserts the collectives, so results
differ between meshes only by the order of sums.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from research import parameters
from research.errors import ConfigError

AXES = ("data", "fsdp", "tensor", "expert", "sequence")
BATCH = ("data", "fsdp", "expert")
# First rule that fits wins; a mesh axis serves one axis of an array.
RULES = (("experts", "expert"), ("vocab", "tensor"), ("heads", "tensor"), ("hidden", "tensor"),
         ("embed", "fsdp"), ("in", "fsdp"))


def mesh_of(config) -> jax.sharding.Mesh:
  """Returns the mesh of `config.mesh` over all devices.

  Raises:
    ConfigError: the sizes do not multiply to the number of devices.
  """
  sizes = {axis: config.mesh[axis] for axis in AXES}
  key = "config.mesh"
  for axis, size in sizes.items():
    if size < (0 if axis == "data" else 1):
      raise ConfigError(f"{key}.{axis}={size} must be at least 1 (data=0 takes the rest).")
  if sizes["sequence"] != 1:
    raise ConfigError(f"{key}.sequence={sizes['sequence']}: this axis is reserved; nothing is split "
                      "over it yet, so it must be 1.")
  devices = jax.devices()
  if not sizes["data"]:
    sizes["data"] = max(1, len(devices) // math.prod(sizes[a] for a in AXES if a != "data"))
  total = math.prod(sizes.values())
  if total != len(devices):
    asked = " x ".join(f"{a}={s}" for a, s in sizes.items() if s > 1) or "1"
    raise ConfigError(f"{key}: {asked} makes {total} devices, but {len(devices)} are here; "
                      f"change a size, or try it on a CPU with --fake_devices={total}.")
  shape = [sizes[a] for a in AXES]
  return jax.sharding.Mesh(np.asarray(devices).reshape(shape), AXES,
                           axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(mesh, batch_size: int, accumulate: int) -> None:
  """Refuses a batch that cannot be split evenly over microbatches and devices."""
  shards = math.prod(mesh.shape[axis] for axis in BATCH)
  if accumulate < 1:
    raise ConfigError(f"config.optim.accumulate={accumulate} must be at least 1.")
  if batch_size % (accumulate * shards):
    raise ConfigError(
        f"config.task.batch_size={batch_size} must be a multiple of config.optim.accumulate={accumulate} x "
        f"{' x '.join(f'{axis}={mesh.shape[axis]}' for axis in BATCH)} = {accumulate * shards}.")


def spec_of(role: parameters.Role, shape, mesh) -> PartitionSpec:
  """Returns the split of one parameter; an axis that does not divide stays whole."""
  entries, used = [None] * len(shape), set()
  for name, mesh_axis in RULES:
    for i, axis in enumerate(role.axes):
      size = mesh.shape[mesh_axis]
      if axis == name and mesh_axis not in used and size > 1 and shape[i] % size == 0:
        entries[i] = mesh_axis
        used.add(mesh_axis)
  return PartitionSpec(*entries)


def of_state(state, mesh, *, stacked_seeds: bool = False):
  """Returns the shardings of a training state, given as shapes.

  Whatever mirrors the parameters (moments, averages) is recognised by its path
  ending like a parameter's and is split alike; the rest is on every device.
  """
  def sharding(path, leaf):
    keys = [entry for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    if not keys or not leaf.shape:
      return NamedSharding(mesh, PartitionSpec())
    whole = leaf
    if stacked_seeds:
      leaf = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    role = parameters.role(keys, leaf)
    if len(role.axes) != len(leaf.shape):
      return NamedSharding(mesh, PartitionSpec())
    spec = spec_of(role, leaf.shape, mesh)
    lead = (None,) * (len(whole.shape) - len(leaf.shape))
    return NamedSharding(mesh, PartitionSpec(*lead, *spec))
  return jax.tree_util.tree_map_with_path(sharding, state)


def of_batch(mesh, *, stacked_seeds: bool = False) -> NamedSharding:
  """Returns the sharding of every array of a batch: rows over data, fsdp and expert."""
  return NamedSharding(mesh, PartitionSpec(None, BATCH) if stacked_seeds else PartitionSpec(BATCH))


def host_rows(mesh, batch_size: int) -> slice:
  """Returns the rows of the global batch that this process has to supply."""
  share = batch_size // jax.process_count()
  return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def put_batch(batch, mesh, batch_size: int, *, seeds: int = 0):
  """Places a host batch (this process's rows) on the mesh as one global array per entry."""
  sharding = of_batch(mesh, stacked_seeds=bool(seeds))
  if mesh.size == 1:
    return jax.device_put(batch, sharding)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(
      sharding, x, (seeds, batch_size, *x.shape[2:]) if seeds else (batch_size, *x.shape[1:])), batch)
