"""Experiment files and dotted overrides: what a run is told to do.

An experiment file is Python: it runs with the user's rights, and is the only
thing loaded here that does. `--config=FILE:PRESET` calls its
`get_config(preset)`; `--config.a.b=v` then changes one leaf, keeping its type.
The same grammar serves the arms of an experiment and sweeps, which is why it is
not config_flags: those need it without a command line.
"""

import hashlib
import importlib.util
import json
import pathlib
import types

import ml_collections

from research import defaults, find
from research.errors import ConfigError, nearest, shown

EXPERIMENTS = find.ROOT / "experiments"
LEAVES = (bool, int, float, str, tuple)
UNNAMED = ("mesh", "sample")  # sections that do not decide what is trained
LARGEST = 3.4e38  # what float32 holds


def experiment_names() -> list[str]:
  """Returns the names of all experiment files."""
  return sorted(p.stem for p in EXPERIMENTS.glob("*.py") if p.stem not in ("__init__", "common"))


def load_file(text: str) -> types.ModuleType:
  """Executes an experiment file, given by path or by name; presets are not part of `text`."""
  path = pathlib.Path(text)
  if not path.suffix:
    path = EXPERIMENTS / f"{text}.py"
  if not path.is_file():
    raise ConfigError(f"--config={shown(text)} is no file; {nearest(path.stem, experiment_names())}")
  spec = importlib.util.spec_from_file_location(f"experiments.{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ConfigError(f"--config={shown(text)} has no get_config(preset); see experiments/byte_lm.py.")
  return module


def module_of(spec: str) -> types.ModuleType:
  """Returns the experiment file of "FILE[:PRESET]", executed."""
  return load_file(spec.partition(":")[0])


def load(spec: str) -> tuple[str, str, ml_collections.ConfigDict]:
  """Returns (experiment name, preset, config) of "FILE[:PRESET]"."""
  file, _, preset = spec.partition(":")
  module, preset = load_file(file), preset or "cpu"
  presets = getattr(module, "PRESETS", ("cpu",))
  if preset not in presets:
    raise ConfigError(f"--config={shown(spec)}: no preset {shown(preset)}; {nearest(preset, presets)}")
  return pathlib.Path(file).stem, preset, defaults.complete(module.get_config(preset))


def override(config: ml_collections.ConfigDict, overrides: dict[str, object]) -> list[str]:
  """Applies dotted overrides in place, names of layers first; returns notes for the user.

  A value may be text, as typed, or already of the leaf's type. Where a `name`
  changes, keys that the new class does not have leave the node, and fields that
  only the new class has can be set.

  Raises:
    ConfigError: an unknown key, or a value that is not of the leaf's type.
  """
  notes = []
  outer_names_first = lambda item: (not item[0].endswith("name"), item[0].count("."))
  for key, value in sorted(overrides.items(), key=outer_names_first):
    node, leaf = _descend(config, key)
    if leaf == "name" and _kind(key):
      notes += _rename(node, key, _typed(key, value, str))
    elif leaf in node:
      node[leaf] = _parse(key, value, node, leaf)
    else:
      _add_field(node, leaf, key, value)
  return notes


def _descend(config, key):
  """Returns (the node that holds the leaf, the leaf's own key)."""
  node, walked = config, []
  *path, leaf = key.split(".")
  for part in path:
    at = ".".join(["config", *walked])
    if part not in node and leaf == "name" and part == path[-1] and _takes(node, walked, part):
      with node.unlocked():
        node[part] = ml_collections.ConfigDict()  # a layer that the file left at its default
    if part not in node:
      known = {k for k in node if isinstance(node[k], ml_collections.ConfigDict)}
      raise ConfigError(f"config.{key}: {at} has no section {shown(part)}; {nearest(part, known)}")
    if not isinstance(node[part], ml_collections.ConfigDict):
      raise ConfigError(f"config.{key}: {at}.{part}={shown(node[part])} is a value, not a section; "
                        f"set {at}.{part} itself.")
    node, walked = node[part], [*walked, part]
  return node, leaf


def _takes(node, walked, part) -> bool:
  """Whether the class of a node has a field that is a layer of its own, called `part`."""
  if walked == ["model"]:
    return part == "policy"
  name = ".".join([*walked, "name"])
  if "name" not in node or part not in find.PLACES or not _kind(name):
    return False
  return _settable(_kind(name), node.name, f"config.{name}").get(part, str) not in LEAVES


def _kind(key: str) -> str | None:
  """Returns the kind of thing a `...name` key chooses; sibling mixers have names of their own."""
  parts = key.split(".")
  if parts in (["task", "name"], ["model", "name"], ["optim", "name"]):
    return parts[0]
  if parts[0] == "model":
    return find.kind_of(parts[-2])
  return None


def _settable(kind: str, name: str, key: str) -> dict[str, type]:
  """Returns what a node of that name may hold: key -> type of its value."""
  if kind == "optim":
    from research import optim  # optax takes a second to import; listing needs none of it
    settings = defaults.DEFAULTS["optim"] | defaults.OPTIONAL["optim"]
    ours = {k: type(v) for k, v in settings.items()} | dict(lr=float, steps=int)
    # An optional argument of an optimizer is a number in every case that optax has.
    types = {k: type(v) if type(v) in LEAVES else float for k, v in optim.arguments(name, key).items()}
    return types | ours
  if (kind, name) == ("channel", "none"):
    return {}  # research/build.py leaves the channel mixer out
  return {k: f.type for k, f in find.fields(find.find(kind, name, key)).items()}


def _rename(node, key, name):
  known = _settable(_kind(key), name, f"config.{key}")
  section = key.removesuffix("name")
  # The model node also holds the nodes of its layers and the stack's settings.
  dropped = [] if section == "model." else [k for k in node if k not in known and k != "name"]
  with node.unlocked():
    for k in dropped:
      del node[k]
    node.name = name
  listed = ", ".join(f"config.{section}{k}" for k in dropped)
  return [f"{name} has no {listed}: left out."] if dropped else []


def _add_field(node, leaf, key, value):
  """Sets a leaf that the file left at the default of its class."""
  of_name = key.removesuffix(leaf) + "name"
  known = {k: type(v) for k, v in defaults.OPTIONAL.get(key.removesuffix(f".{leaf}"), {}).items()}
  if "name" in node and _kind(of_name):
    known |= _settable(_kind(of_name), node.name, f"config.{of_name}")
  known = {k: kind for k, kind in known.items() if kind in LEAVES}
  if leaf not in known:
    raise ConfigError(f"config.{key}={shown(value)}: unknown key {shown(leaf)}; "
                      f"{nearest(leaf, {*node.keys(), *known})}")
  with node.unlocked():
    # The rows that optimizers take are all of numbers.
    node[leaf] = _typed(key, value, known[leaf], (0.0,) if key.startswith("optim.") else ())


def _parse(key, value, node, leaf):
  kind = node.get_type(leaf)
  if kind is ml_collections.ConfigDict:
    raise ConfigError(f"config.{key}={shown(value)}: {leaf} is a section with the keys "
                      f"{', '.join(sorted(node[leaf].keys()))}; set one of them.")
  return _typed(key, value, kind, node[leaf])


def _typed(key, value, kind, current=()):
  """Returns the value as a finite `kind`; text is read, anything else must be of it already."""
  problem = ConfigError(f"config.{key}={shown(value)} must be {_spoken(kind)}.")
  if kind is tuple:
    parts = value
    if isinstance(value, str):
      parts = [v.strip() for v in value.strip("()").split(",") if v.strip()]
    inner = type(current[0]) if current else str
    return tuple(_typed(key, v, inner) for v in parts)
  if kind is bool and isinstance(value, str):
    if value.lower() not in ("true", "false", "1", "0"):
      raise problem
    return value.lower() in ("true", "1")
  try:
    typed = kind(value) if isinstance(value, str) else value
  except (ValueError, OverflowError):
    raise problem from None
  if kind is float and type(typed) is int:
    typed = float(typed)
  if type(typed) is not kind or (kind is float and not abs(typed) < LARGEST):
    raise problem
  return typed


def _spoken(kind):
  return {bool: "true or false", int: "a whole number", float: "a number that float32 holds",
          str: "text", tuple: "values separated by commas"}.get(kind, kind.__name__)


def text_of(config: ml_collections.ConfigDict) -> str:
  """Returns the canonical JSON text of a config, the same for equal configs."""
  return config.to_json_best_effort(sort_keys=True, indent=2)


def from_text(text: str) -> ml_collections.ConfigDict:
  """Returns the config of a config.json; JSON has no tuples, configs no lists.

  Raises:
    ValueError: the text is not one object of JSON.
  """
  def read(value):
    if isinstance(value, dict):
      return {k: read(v) for k, v in value.items()}
    return tuple(map(read, value)) if isinstance(value, list) else value
  found = json.loads(text)
  if not isinstance(found, dict):
    raise ValueError("it is not an object")
  return ml_collections.ConfigDict(read(found))


def id_of(config: ml_collections.ConfigDict) -> str:
  """Returns 12 hex digits that name what is trained; the digest of its canonical text.

  The mesh and the sampled text are left out: they do not decide the parameters,
  and a run may go on elsewhere.
  """
  named = ml_collections.ConfigDict({k: config[k] for k in config if k not in UNNAMED})
  return hashlib.sha256(named.to_json_best_effort(sort_keys=True).encode()).hexdigest()[:12]
