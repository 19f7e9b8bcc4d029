"""Finds a class by its path: "gla.GLA" among the mixers is class GLA of layers/mixers/gla.py.

No registry: a new file is found because it lies where its kind lives. A name
can only ever lead into these folders, so a config cannot import anything else.
The keys of a config node beside `name` are the fields of the class.
"""

import ast
import dataclasses
import functools
import importlib
import pathlib
import re

from research.errors import ConfigError, nearest, shown

ROOT = pathlib.Path(__file__).parent.parent

# Kind of node -> the folders its classes live in. A field of a class that holds
# another layer (a memory over a mixer, say) is named after its kind as well.
PLACES = {
    "model": ("layers",),
    "mixer": ("layers/mixers", "layers/in_context"),
    "norm": ("layers/norms",),
    "channel": ("layers/channel",),
    "router": ("layers/moe",),
    "policy": ("layers/depth",),
    "task": ("research/tasks",),
}


def kind_of(node: str) -> str:
  """Returns the kind of layer that a node of a model holds, by its key; further mixers choose theirs."""
  return node if node in ("norm", "channel", "router", "policy") else "mixer"


@functools.cache
def _found(kind: str) -> dict[str, str]:
  """Returns "file.Class" -> its folder, read without importing."""
  found = {}
  for folder in PLACES[kind]:
    for path in sorted((ROOT / folder).glob("*.py")):
      classes = [node for node in ast.parse(path.read_text("utf-8")).body
                 if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
      found |= {f"{path.stem}.{c.name}": folder for c in classes if _is_one(kind, c)}
  return found


def names(kind: str) -> tuple[str, ...]:
  """Returns "file.Class" for every public class of that kind."""
  return tuple(_found(kind))


def path_of(kind: str, name: str) -> pathlib.Path:
  """Returns the file of a name that `names` gave."""
  return ROOT / _found(kind)[name] / f"{name.partition('.')[0]}.py"


def _is_one(kind: str, node: ast.ClassDef) -> bool:
  """Models and mixers share folders with their parts; what tells them is `stack`, or `init_state`."""
  if kind == "model":
    return any(isinstance(line, ast.AnnAssign) and getattr(line.target, "id", "") == "stack" for line in node.body)
  return kind != "mixer" or any(isinstance(line, ast.FunctionDef) and line.name == "init_state" for line in node.body)


def find(kind: str, name: str, key: str):
  """Returns the class called `name`; `key` is where the config says so.

  Raises:
    ConfigError: no such class of that kind; names the nearest one.
  """
  well_formed = isinstance(name, str) and re.fullmatch(r"[a-z0-9_]{1,80}\.[A-Z]\w{0,80}", name)
  if not well_formed or name not in names(kind):
    # The list of names is long; what was asked for need not be quoted to its end.
    asked = shown(name[:80]) if isinstance(name, str) else shown(name)
    raise ConfigError(f"{key}={asked} is no class under {' or '.join(f'{p}/' for p in PLACES[kind])}; "
                      f"{nearest(str(name), names(kind))}")
  file, class_name = name.split(".")
  return getattr(importlib.import_module(f"{_found(kind)[name].replace('/', '.')}.{file}"), class_name)


def fields(cls) -> dict[str, dataclasses.Field]:
  """Returns the fields of a class that a config node may set."""
  hidden = ("parent", "name")
  return {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in hidden}
