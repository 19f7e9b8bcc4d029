"""The arms of an experiment: named sets of overrides, and the configs that they make."""

import hashlib
import re
from typing import Any, NamedTuple

from research import claims, config as configs
from research.errors import ConfigError, shown


class Arm(NamedTuple):
  """One thing compared: its name, what it changes, and the whole config."""

  name: str
  overrides: dict[str, Any]
  config: Any


def config_of(spec: str, overrides: dict) -> Any:
  """Returns the config of "FILE[:PRESET]" with dotted overrides."""
  config = configs.load(spec)[2]
  configs.override(config, overrides)
  return config


def make(spec: str, common: dict, arms: dict[str, dict]) -> list[Arm]:
  """Returns the arms in order, each with `common` overrides below its own.

  Raises:
    ConfigError: a bad name, an override that does not fit, or two arms that are the same.
  """
  made, ids = [], {}
  for name, overrides in arms.items():
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", str(name)):
      raise ConfigError(f"arm {shown(name)}: a name is of letters, digits, '.', '_' and '-', at most 100.")
    try:
      config = config_of(spec, {**common, **overrides})
    except ConfigError as error:
      raise ConfigError(f"arm {name}: {error}") from error
    twin = ids.setdefault(configs.id_of(config), name)
    if twin != name:
      raise ConfigError(f"arms {twin} and {name} are the same config; every arm has to change something.")
    made.append(Arm(name, overrides, config))
  return made


def of_experiment(spec: str) -> dict[str, dict]:
  """Returns what `arms()` of an experiment file says.

  Raises:
    ConfigError: the file has none.
  """
  file = spec.partition(":")[0]
  module = configs.load_file(file)
  if not hasattr(module, "arms"):
    raise ConfigError(f"{file} has no arms(); add one, or name what to vary: --vary=\"optim.lr=1e-3,3e-3\".")
  arms = module.arms()
  if not isinstance(arms, dict) or not arms or not all(isinstance(v, dict) for v in arms.values()):
    raise ConfigError(f"arms() of {file} must return {{name: {{dotted key: value}}}}.")
  return arms


def claims_of(spec: str) -> list:
  """Returns what `claims()` of an experiment file says; [] where it has none."""
  module = configs.module_of(spec)
  if not hasattr(module, "claims"):
    return []
  found = list(module.claims())
  claims.check(found, of_experiment(spec))
  return found


def named(varied: list[dict[str, str]]) -> dict[str, dict]:
  """Returns the arms of a --vary with names made of what they set, short and fit for folders."""
  keys = {key for arm in varied for key in arm}
  leaf = {key: key.rpartition(".")[2] for key in keys}
  if len(set(leaf.values())) < len(keys):
    leaf = {key: key.replace(".", "-") for key in keys}
  found = {}
  for arm in varied:
    text = "_".join(f"{leaf[key]}-{value}" for key, value in arm.items())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")
    if len(name) > 80 or name in found:
      name = f"{name[:70]}-{digest(arm)[:8]}"
    found[name] = arm
  return found


def digest(value) -> str:
  """Returns 12 hex digits of something that prints the same whenever it is the same."""
  return hashlib.sha256(repr(value).encode()).hexdigest()[:12]
