"""From a config to the objects it names: the task, the model, their checks.

The node `config.model` holds the fields of the model class, the settings of the
stack (depth, pattern, placement, dropout, scan, remat), one node per kind of
layer, and one node per further mixer that the pattern names:

    model.pattern = ("mixer", "mixer", "attention")     # repeated until depth is reached
    model.mixer.name = "scalar_decay.ScalarDecayAttention"
    model.attention.name = "attention.Attention"
"""

import functools
import re

import jax
import jax.numpy as jnp
import ml_collections

from layers.placement import placement
from layers.stack import REMAT, Stack
from research import find
from research.config import LARGEST
from research.errors import ConfigError, nearest, shown

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
STACK = ("depth", "pattern", "placement", "dropout", "scan", "remat", "share", "lora_rank")
MAX_DEPTH = 10_000  # layers
MAX_TRACED = 200  # layers traced one by one; each costs a second of compilation or more


def task_of(config):
  """Returns the task that `config.task` describes."""
  node, key = config.task, "config.task"
  cls = find.find("task", node.get("name"), f"{key}.name")
  return _call(key, functools.partial(cls, **_fields(node, key, find.fields(cls))))


def model_of(config, task, *, train: bool):
  """Returns the unbound model for the task; `train` reaches every module that has the field."""
  node, key = config.model, "config.model"
  cls = find.find("model", node.get("name"), f"{key}.name")
  given = of_task(task.model_fields)
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
  if not own.get("width", 0):
    raise ConfigError(f"{key}.width=0 must be at least 1, the size of the residual stream.")
  stack = functools.partial(Stack, **_stack_fields(node, key, shared))
  traced = sum(run.period for run in _call(key, stack(parent=None).runs))
  if traced > MAX_TRACED:
    raise ConfigError(f"{key}.depth={node.depth} makes {traced} layers that no scan can share, more than "
                      f"{MAX_TRACED}; take {key}.scan=True and a shorter {key}.pattern.")
  fields = find.fields(cls)
  return cls(**{**own, **given, **_only(shared, fields), "stack": stack})


def _stack_fields(node, key, shared):
  depth, dropout, remat, pattern = node.depth, node.dropout, node.remat, node.pattern
  if not 1 <= depth <= MAX_DEPTH:
    raise ConfigError(f"{key}.depth={depth} must be from 1 to {MAX_DEPTH} layers.")
  if not 0 <= dropout < 1:
    raise ConfigError(f"{key}.dropout={dropout} must be at least 0 and below 1.")
  if remat not in REMAT:
    raise ConfigError(f"{key}.remat={shown(remat)} is unknown; {nearest(remat, REMAT)}")
  if not pattern:
    raise ConfigError(f"{key}.pattern is empty; name at least one mixer node, such as 'mixer'.")
  kinds = {"norm", "channel", "policy"}
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
  place = _call(key, functools.partial(placement, node.placement, depth))
  return dict(
      mixers=tuple(made[pattern[layer % len(pattern)]] for layer in range(depth)),
      channel=channel, norm=_layer("norm", node.norm, f"{key}.norm", shared),
      placement=place, dropout=dropout, scan=node.scan, remat=remat,
      train=shared["train"], share=node.get("share", ""), lora_rank=node.get("lora_rank", 0),
      policy=_layer("policy", node.policy, f"{key}.policy", shared) if "policy" in node else None)


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
      given[k] = _layer(find.kind_of(k), node[k], f"{key}.{k}", shared)
  return functools.partial(cls, **given)


def check_layers(config, tokens: int) -> None:
  """Traces every layer by itself, also one that the pattern leaves out, on one row of `tokens`.

  Raises:
    ConfigError: what the layer refuses, with the key of its node.
  """
  model = config.model
  shared = dict(dtype=_dtype(model), train=True)
  x_BTD = jax.ShapeDtypeStruct((1, tokens, model.width), shared["dtype"])
  rngs = {name: jax.random.key(0) for name in ("params", "dropout")}
  for name in model:
    node, key = model[name], f"config.model.{name}"
    if not isinstance(node, ml_collections.ConfigDict) or node.get("name") == "none" or name == "policy":
      continue  # a policy wraps layers; alone it computes nothing
    layer = _layer(find.kind_of(name), node, key, shared)(parent=None)
    if getattr(layer, "uses_context", False):  # needs what the layers before it left
      continue
    try:
      made = [jax.eval_shape(layer.init, rngs, x_BTD)]
      made += [jax.eval_shape(lambda: layer.init_state(1))] if hasattr(layer, "init_state") else []
    except (ValueError, TypeError, ArithmeticError, IndexError) as error:
      raise ConfigError(_blamed(node, key, str(error))) from error
    if any(0 in leaf.shape for leaf in jax.tree.leaves(made[0])):
      raise ConfigError(_blamed(node, key, "one of its parameters has no elements."))


def _blamed(node, key, text):
  """Returns one line that names the field at fault: the one that the layer or a part of it names, or one set to 0."""
  text = line_of(text)
  parts = {k: node[k] for k in node if isinstance(node[k], ml_collections.ConfigDict)}
  node = {k: node[k] for k in node if k not in parts}
  known = _known(node, key)
  if field := re.match(r"(\w+)=", text):
    for place, fields in [(key, known), *((f"{key}.{k}", _known(part, f"{key}.{k}")) for k, part in parts.items())]:
      if field[1] in fields:
        return f"{place}.{text}"
  for k in sorted(node):
    if k in known and node[k] == 0 and type(node[k]) is int and known[k].default != 0:
      return f"{key}.{k}=0 must be at least 1."
  given = ", ".join(f"{key}.{k}={shown(node[k])}" for k in sorted(node) if k != "name")
  return f"{given or key} cannot be built: {text}"


def _known(node, key):
  """Returns the fields of the layer that a node describes."""
  return find.fields(find.find(find.kind_of(key.split(".")[-1]), node["name"], f"{key}.name"))


def line_of(text: str) -> str:
  """Returns the first line of an error; our own layers say all in one."""
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return shown(lines[0])[1:-1] if lines else "the reason is not known."


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
    if isinstance(value, float) and not abs(value) < LARGEST:
      raise ConfigError(f"{key}.{k}={value} must be a number that float32 holds.")
    if type(value) is int and not 0 <= value < 2**31:
      raise ConfigError(f"{key}.{k}={shown(value)} must not be negative, and below 2**31.")


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


def of_task(ask):
  """Calls a method of the task; what its data cannot do is told with the key of the task."""
  return _call("config.task", ask)


def _call(key, make):
  """Calls a constructor whose refusals name their field; adds where the config sets it."""
  try:
    return make()
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f"{key}.{error}") from error
