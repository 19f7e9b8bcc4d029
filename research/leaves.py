"""A pytree as a flat table of named arrays: what every file of a run stores.

A name is the path of the leaf, "params/dense/kernel". Typed PRNG keys are stored as their words (uint32, one
more axis) and turned back with the implementation that the reader asks for.
"""

import jax
import jax.numpy as jnp
import numpy as np


def named_leaves(tree) -> dict:
  """Returns {path: leaf} in tree order.

  Raises:
    ValueError: two leaves share a path (a key contains "/").
  """
  pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
  named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
  if len(named) != len(pairs):
    raise ValueError(f"{len(pairs)} leaves have {len(named)} different paths; remove '/' from the keys of the tree.")
  return named


def is_key(leaf) -> bool:
  """Whether a leaf (array or ShapeDtypeStruct) holds typed PRNG keys."""
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def words(leaf):
  """Typed keys as their uint32 words; any other array as it is."""
  return jax.random.key_data(leaf) if is_key(leaf) else leaf


def key_impl(leaf) -> str:
  """The implementation of typed keys, for an array or a ShapeDtypeStruct."""
  seen = []
  # jax.random.key_impl refuses abstract values, but not the tracer made from one.
  jax.eval_shape(lambda key: seen.append(jax.random.key_impl(key)), leaf)
  return str(seen[0])


def stored(leaf) -> jax.ShapeDtypeStruct:
  """What a file holds for a leaf: keys as words, and always with a sharding (one local device if it has none)."""
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  if is_key(leaf):
    leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def to_host(leaf) -> np.ndarray:
  """The whole array on this host, gathered from the other hosts where they hold parts of it."""
  leaf = words(leaf)
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    from jax.experimental import multihost_utils  # slow to import, and only needed on several hosts
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
  return np.asarray(leaf)
