"""What layers show of themselves to whoever looks: values sown into the collection "depth".

A forward pass in which "depth" is not mutable (training, evaluation, init) traces
nothing of this. research/diagnostics.py is who looks, at

    stream_BTD            by the stack: before its first layer, and after every layer
    attention_entropy_BT  by attention
    gates_NE, dropped     by what has a router: layers/routing.py
    kept_BK               by a layer that only some tokens enter, once for each time it runs: which tokens, -1 for none
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

DEPTH = "depth"


def show(module: nn.Module, name: str, make: Callable) -> None:
  """Sows the array that `make` returns under `name`, if somebody looks."""
  if module.is_mutable_collection(DEPTH) and not module.is_initializing():
    module.sow(DEPTH, name, make())


def find(layer, name: str) -> list[tuple[str, int, jax.Array]]:
  """Returns (module, which run of the layer, array) for all that one layer shows under a name.

  Args:
    layer: what the collection holds of one layer.
    name: of what is shown.
  """
  found = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(layer):
    *modules, shown, run = [getattr(entry, "key", getattr(entry, "idx", None)) for entry in path]
    if shown == name:
      found.append((modules[-1] if modules else "", run, leaf))
  return found


def seen(layer, values_BT, none=False) -> list[jax.Array]:
  """Returns what each run of one layer got to see of values by token: all, or those of the kept tokens, `none` else."""
  kept = [index_BK for _, _, index_BK in find(layer, "kept_BK")]
  take = lambda index_BK: jnp.where(index_BK >= 0, jnp.take_along_axis(values_BT, index_BK, axis=1), none)
  return [take(index_BK) for index_BK in kept] or [values_BT]
