"""What a diverged run leaves behind: the arrays that made the first non-finite number, readable in one call.

`<dir>/arrays.npz` (never pickled) and `<dir>/leaves.json`, which maps each leaf path to its entry. Typed keys are
stored as words with their implementation, dtypes that npz does not know (bfloat16) as bytes with their name.
"""

import io
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from research import leaves
from research import manifest

_MAX_JSON = 32 << 20


def write_postmortem(directory, tree):
  """Stores a pytree of arrays, for example {"state": state, "batch": batch}; all hosts call it, process 0 writes."""
  named = leaves.named_leaves(jax.tree.map(jnp.asarray, tree))
  table, arrays = [], {}
  for n, (path, leaf) in enumerate(named.items()):
    array = leaves.to_host(leaf)
    impl = leaves.key_impl(leaf) if leaves.is_key(leaf) else None
    table.append([path, str(array.dtype), list(array.shape), impl])
    arrays[str(n)] = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
  if jax.process_index() == 0:
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    manifest.write_atomically(directory / "arrays.npz", packed.getvalue())
    manifest.write_atomically(directory / "leaves.json", manifest.canonical(table))


def read_postmortem(directory, like=None):
  """Returns {path: array}, or a pytree of the structure of `like` holding the stored arrays.

  Raises:
    ValueError: the two files do not fit each other, or `like` has other leaves.
  """
  directory = pathlib.Path(directory)
  text = directory / "leaves.json"
  if text.stat().st_size > _MAX_JSON:
    raise ValueError(f"{str(text)!r} has {text.stat().st_size} bytes, more than {_MAX_JSON}.")
  found = {}
  try:
    with np.load(directory / "arrays.npz", allow_pickle=False) as arrays:
      for n, (path, dtype, shape, impl) in enumerate(json.loads(text.read_bytes())):
        # jnp.dtype knows bfloat16 and the float8 types by name, which numpy alone does not.
        array = np.frombuffer(arrays[str(n)].tobytes(), jnp.dtype(dtype)).reshape(shape)
        found[path] = jnp.asarray(array) if impl is None else jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
  except (KeyError, TypeError, RecursionError, ValueError) as error:
    raise ValueError(f"{str(directory)!r} holds no readable post-mortem: {str(error)[:200]}") from None
  if like is None:
    return found
  wanted = leaves.named_leaves(like)
  if wanted.keys() != found.keys():
    raise ValueError(f"the post-mortem and `like` differ in the leaf {min(wanted.keys() ^ found.keys())!r}.")
  return jax.tree.unflatten(jax.tree.structure(like), [found[path] for path in wanted])
