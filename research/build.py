"""From a config to the objects it names: the task, the model, their checks.

The node `config.model` holds the fields of the model class, the settings of the
stack (depth, pattern, placement, dropout, scan, remat), one node per kind of
layer, and one node per further mixer that the pattern names:

    model.pattern = ("mixer", "mixer", "attention")     # repeated until depth is reached
    model.mixer.name = "scalar_decay.ScalarDecayAttention"
    model.attention.name = "attention.Attention"
"""

import functools
import math

import jax.numpy as jnp
import ml_collections

from layers.placement import placement
from layers.stack import REMAT, Stack
from research import find
from research.errors import ConfigError, nearest, shown

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
STACK = ("depth", "pattern", "placement", "dropout", "scan", "remat")
MAX_DEPTH = 10_000  # layers; each is traced or stored one by one somewhere


def task_of(config):
  """Returns the task that `config.task` describes."""
  node, key = config.task, "config.task"
  cls = find.find("task", node.get("name"), f"{key}.name")
  return _call(key, functools.partial(cls, **_fields(node, key, find.fields(cls))))


def model_of(config, task, *, train: bool):
  """Returns the unbound model for the task; `train` reaches every module that has the field."""
  node, key = config.model, "config.model"
  cls = find.find("model", node.get("name"), f"{key}.name")
  given = task.model_fields()
  missing = set(given) - set(find.fields(cls))
  if missing:
    raise ConfigError(f"{key}.name={node.name!r} does not take {', '.join(sorted(missing))}, "
                      f"which config.task.name={config.task.name!r} decides; "
                      f"{_takers(given)}")
  known = set(find.fields(cls)) - set(given)
  mixers = {k for k in node if isinstance(node[k], ml_collections.ConfigDict)}
  unknown = {k for k in node if k not in known | mixers | set(STACK) | {"name", "dtype"}}
  if unknown:
    first = min(unknown)
    raise ConfigError(f"{key}.{first}={shown(node[first])}: unknown key; "
                      f"{nearest(first, known | set(STACK))}")
  shared = dict(dtype=_dtype(node), train=train)
  own = {k: node[k] for k in node if k in known and k not in mixers}
  _check_sizes(key, own)
  stack = functools.partial(Stack, **_stack_fields(node, key, shared))
  fields = find.fields(cls)
  return cls(**{**own, **given, **_only(shared, fields), "stack": stack})


def _stack_fields(node, key, shared):
  depth = node.get("depth", 0)
  if not 1 <= depth <= MAX_DEPTH:
    raise ConfigError(f"{key}.depth={depth} must be from 1 to {MAX_DEPTH} layers.")
  dropout = node.get("dropout", 0.0)
  if not 0 <= dropout < 1:
    raise ConfigError(f"{key}.dropout={dropout} must be at least 0 and below 1.")
  remat = node.get("remat", "none")
  if remat not in REMAT:
    raise ConfigError(f"{key}.remat={shown(remat)} is unknown; {nearest(remat, REMAT)}")
  pattern = node.get("pattern", ("mixer",))
  if not pattern:
    raise ConfigError(f"{key}.pattern is empty; name at least one mixer node, such as 'mixer'.")
  kinds = {"norm", "channel"}
  nodes = {k for k in node if isinstance(node[k], ml_collections.ConfigDict)} - kinds
  for entry in pattern:
    if entry not in nodes:
      raise ConfigError(f"{key}.pattern={shown(pattern)}: there is no node {key}.{entry}; "
                        f"{nearest(entry, nodes)}")
  made = {entry: _layer("mixer", node[entry], f"{key}.{entry}", shared) for entry in nodes}
  channel = node.get("channel")
  if channel is not None and channel.get("name") != "none":
    channel = _layer("channel", channel, f"{key}.channel", shared)
  else:
    channel = None
  place = _call(key, functools.partial(placement, node.get("placement", "pre"), depth))
  return dict(
      mixers=tuple(made[pattern[layer % len(pattern)]] for layer in range(depth)),
      channel=channel, norm=_layer("norm", node.norm, f"{key}.norm", shared),
      placement=place, dropout=dropout, scan=node.get("scan", True), remat=remat,
      train=shared["train"])


def _layer(kind, node, key, shared):
  """Returns a factory of the layer; nodes inside it become factories of their own kind."""
  cls = find.find(kind, node.get("name"), f"{key}.name")
  known = find.fields(cls)
  plain = {k: v for k, v in node.items() if not isinstance(v, ml_collections.ConfigDict)}
  given = {**_only(shared, known), **_fields(plain, key, known)}
  for k in node:
    if isinstance(node[k], ml_collections.ConfigDict):
      if k not in known:
        raise ConfigError(f"{key}.{k}: {node.name} has no such part; {nearest(k, known)}")
      given[k] = _layer(k if k in find.PLACES else "mixer", node[k], f"{key}.{k}", shared)
  return functools.partial(cls, **given)


def _fields(node, key, known):
  """Returns the node without its name, every key checked to be a field."""
  given = {k: node[k] for k in node if k != "name"}
  for k, value in given.items():
    if k not in known:
      raise ConfigError(f"{key}.{k}={shown(value)}: unknown key; {nearest(k, known)}")
  if "dtype" in given:
    given["dtype"] = _dtype(given, key)
  _check_sizes(key, given)
  return given


def _check_sizes(key, given):
  """What holds for every field of every layer: numbers are finite and no size is negative."""
  for k, value in given.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise ConfigError(f"{key}.{k}={value} must be a finite number.")
    if type(value) is int and value < 0:
      raise ConfigError(f"{key}.{k}={value} must not be negative.")


def _dtype(node, key="config.model"):
  name = node.get("dtype", "float32")
  if name not in DTYPES:
    raise ConfigError(f"{key}.dtype={shown(name)} is unknown; {nearest(str(name), DTYPES)}")
  return DTYPES[name]


def _only(values, known):
  return {k: v for k, v in values.items() if k in known}


def _takers(given):
  fit = [name for name in find.names("model")
         if set(given) <= set(find.fields(find.find("model", name, "")))]
  return f"take config.model.name={' or '.join(fit)}."


def _call(key, make):
  """Calls a constructor whose refusals name their field; adds where the config sets it."""
  try:
    return make()
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f"{key}.{error}") from error
