"""Who writes to the residual stream of a model and who reads it, as paths of its parameters.

A layer that touches the stream only by linear maps says which, by class attributes

    reads = ("query", "key", "value")      modules that its input goes into, and nothing else of it does
    writes = ("out",)                      modules whose sum is its output

and so does a model of its embeddings and its head. What says nothing is unknown and
refused: a conversion of what it cannot see would be wrong without a word.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from layers.placement import Placement

WEIGHTS = ("kernel", "embedding")


class Site(NamedTuple):
  """One linear map at the stream.

  Attributes:
    path: of its module in the parameters.
    norm: of the norm that feeds a reader, () where the stream itself does.
    repeats: length of the leading axis of layers, 0 without one.
    scale: factors on what a reader gets, one per layer.
    transform: its name in layers/kernel_transforms.py, "" for none.
  """

  path: tuple[str, ...]
  norm: tuple[str, ...] = ()
  repeats: int = 0
  scale: tuple[float, ...] = (1.0,)
  transform: str = ""


class StreamMap(NamedTuple):
  """All of them, and what else decides whether a conversion is exact.

  Attributes:
    readers, writers: every map at the stream.
    norm: the norm, unbound; all norms of a model are of one kind.
    placement: where the norms are.
    dropout: rate on what writers add.
    tied: whether the head is the embedding.
  """

  readers: tuple[Site, ...]
  writers: tuple[Site, ...]
  norm: nn.Module
  placement: Placement
  dropout: float
  tied: bool


def stream_map(model) -> StreamMap:
  """Returns the map of an unbound model.

  Raises:
    ValueError: a layer, or the model, does not declare what it reads and writes.
  """
  stack = model.stack(parent=None)
  place, readers, writers = stack.placement, [], []
  for run in stack.runs():
    for i in range(run.period):
      first = run.first + i
      layers = range(first, first + run.period * run.repeats, run.period)
      parts = {"mixer": stack.mixers[first], "channel": stack.channel}
      for name, make in parts.items():
        if make is None:
          continue
        layer = make(parent=None)
        _check_declared(layer)
        block = ("stack", run.name, f"block_{i}")
        site = Site((), (*block, f"{name}_pre_norm") if place.pre[first] else (), run.repeats if run.repeats > 1 else 0,
                    tuple(place.in_scale[at] for at in layers), getattr(layer, "kernel_transform", ""))
        readers += [site._replace(path=(*block, name, module)) for module in layer.reads]
        writers += [site._replace(path=(*block, name, module), norm=(), scale=(1.0,)) for module in layer.writes]
  _check_declared(model)
  final = ("stack", "final_norm") if place.final_norm else ()
  writers += [Site((module,)) for module in model.writes]
  readers += [Site((module,), final) for module in model.reads]
  return StreamMap(tuple(readers), tuple(writers), stack.norm(parent=None), place, stack.dropout, getattr(model, "tied", False))


def _check_declared(layer):
  if not (hasattr(layer, "reads") and hasattr(layer, "writes")):
    raise ValueError(f"{type(layer).__name__} does not declare which of its maps read and write the residual stream; "
                     "give its class the attributes reads and writes, or convert a model without it.")


def at(tree, path, default=None) -> Any:
  """Returns the subtree at a path, `default` where there is none."""
  for name in path:
    if name not in tree:
      return default
    tree = tree[name]
  return tree


def replaced(tree, changes: dict):
  """Returns the tree with other subtrees at some paths; None leaves one out."""
  tree = dict(tree)
  inner = {}
  for path, new in changes.items():
    if len(path) > 1:
      inner.setdefault(path[0], {})[path[1:]] = new
    elif new is None:
      tree.pop(path[0], None)
    else:
      tree[path[0]] = new
  for name, deeper in inner.items():
    if name in tree or any(new is not None for new in deeper.values()):
      tree[name] = replaced(tree.get(name, {}), deeper)
  return tree


def each(site: Site, function):
  """Returns a function of the arrays of one layer as one of those of all layers of a site."""
  return jax.vmap(function) if site.repeats else function


def scales(site: Site, like):
  """Returns the factors of a site as `each` takes them, with the dtype of an array."""
  return np.asarray(site.scale if site.repeats else site.scale[0], like.dtype)


def changed_weights(params, sites, function):
  """Returns the parameters with `function(weight, site)` for every kernel or embedding of some sites."""
  changes = {}
  for site in sites:
    module = at(params, site.path)
    name, = [name for name in WEIGHTS if name in module]
    changes[*site.path, name] = function(module[name], site)
  return replaced(params, changes)


def check_plain(stream: StreamMap) -> None:
  """Refuses what no conversion of the stream can follow.

  Raises:
    ValueError: the head is the embedding, a kernel is a function of its parameters, the stream is
      normalised itself, or something reads it without a norm.
  """
  place = stream.placement
  if stream.tied:
    raise ValueError("tied=True: a head that is the embedding is read and written at once; train with tied=False.")
  if transform := next((site.transform for site in stream.readers + stream.writers if site.transform), ""):
    raise ValueError(f"kernel_transform={transform!r} makes a kernel of other parameters; materialise it first.")
  beyond = [name for name in ("out", "post") if any(getattr(place, name))] + ["embed"] * place.embed_norm
  if beyond:
    raise ValueError(f"placement has an {beyond[0]} norm, whose output is part of the residual stream; "
                     "only norms that a map reads can be converted, as in 'pre' and 'layernorm_scaling'.")
  if raw := next((site for site in stream.readers if not site.norm), None):
    raise ValueError(f"{'/'.join(raw.path)} reads the residual stream without a norm, so its mean cannot be taken away; "
                     "take a placement with pre and final norms.")
