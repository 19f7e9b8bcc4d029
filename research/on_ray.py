"""Units of a sweep as tasks on a Ray cluster; Ray places them, and repeats those whose node died.

The directory of the sweep has to be one that every node sees. A unit that is repeated goes on from its
last checkpoint. Needs the extra `ray`.
"""

import importlib.util
import math
import os
import pathlib
import signal
import socket

from research import board, exit_codes, find
from research.errors import ConfigError, shown

RETRIES = 3  # of one unit whose process or node died


def resources_of(text: str) -> dict[str, float]:
  """Returns what "CPU=1,GPU=0.5" says a unit takes.

  Raises:
    ConfigError: not of that form.
  """
  found = {}
  for part in filter(None, text.split(",")):
    name, _, amount = part.partition("=")
    try:
      found[name.strip()] = float(amount)
    except ValueError:
      found[name.strip()] = math.nan
  if not found or not all(name and 0 <= amount < math.inf for name, amount in found.items()):
    raise ConfigError(f"--resources={shown(text)} must be NAME=NUMBER,..., as in CPU=1,GPU=1.")
  return found


def run(units: list[dict], address: str, resources: str) -> list[dict]:
  """Trains all units on the cluster; returns their results in order.

  Args:
    units: see research/unit.py.
    address: of the cluster, or "auto" for the one of this machine.
    resources: what one unit takes, "CPU=1,GPU=1".

  Raises:
    ConfigError: no Ray here, or no cluster there.
  """
  asked = resources_of(resources)
  ray = _ray()
  try:
    _knock(address)
    ray.init(address=address, logging_level="error", log_to_driver=False, runtime_env={"env_vars": _environment(asked)})
  except (OSError, OverflowError, RuntimeError, ValueError) as error:
    raise ConfigError(f"--ray={shown(address)}: no cluster answers ({str(error).splitlines()[0][:120]}); start one by "
                      "`ray start --head`, or use --jobs=N on this machine.") from error
  try:
    return _all(ray, units, asked)
  finally:
    ray.shutdown()


def _knock(address):
  """Raises OSError if nobody listens at HOST:PORT, which Ray itself would try for a quarter of an hour."""
  host, colon, port = address.rpartition("://")[2].rpartition(":")
  if colon and port.isdecimal():
    socket.create_connection((host, int(port)), timeout=10).close()


def _ray():
  if importlib.util.find_spec("ray") is None:
    raise ConfigError("--ray needs Ray: pip install 'strata[ray]'; --jobs=N needs nothing.")
  import ray
  return ray


def _environment(asked) -> dict[str, str]:
  """Returns the variables of the processes that train."""
  found = {"PYTHONPATH": str(find.ROOT), "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")}
  for name in ("JAX_PLATFORMS", "STRATA_CACHE"):
    if name in os.environ:
      found[name] = os.environ[name]
  if asked.get("CPU") == 1 and not asked.get("GPU") and not asked.get("TPU"):
    # Ray hands out cores in number only; several processes of many threads would fight over them.
    found["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
  return found


def train(unit: dict) -> dict:
  """What a task does; runs on any node."""
  from research import settings
  from research import unit as units
  settings.prepare()
  return units.run_unit(unit)


def _all(ray, units, asked):
  task = ray.remote(train).options(
      num_cpus=asked.get("CPU", 1), num_gpus=asked.get("GPU", 0), max_retries=RETRIES,
      resources={name: amount for name, amount in asked.items() if name not in ("CPU", "GPU")})
  waiting = {task.remote(_absolute(unit)): i for i, unit in enumerate(units)}
  done = [None] * len(units)
  signal.signal(signal.SIGTERM, _stop)  # Ray's own handler would leave without a word
  with board.Board(units) as shown_board:
    shown_board.say(f"{len(units)} units on the Ray cluster, {asked} each")
    try:
      while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        for reference in ready:
          i = waiting.pop(reference)
          done[i] = _result(ray, reference)
          shown_board.done(i, done[i])
    except KeyboardInterrupt:
      for reference, i in waiting.items():
        ray.cancel(reference)
        done[i] = {"code": exit_codes.PREEMPTED, "seconds": 0.0, "why": "stopped"}
  return done


def _stop(*_):
  raise KeyboardInterrupt


def _result(ray, reference) -> dict:
  try:
    return ray.get(reference)
  except ray.exceptions.RayError as error:
    why = f"lost {RETRIES + 1} times: {str(error).splitlines()[0][:200]}"
    return {"code": exit_codes.CRASH, "seconds": 0.0, "why": why}


def _absolute(unit):
  """Returns the unit with paths that mean the same on every node."""
  file, colon, preset = unit["config"].partition(":")
  file = str(pathlib.Path(file).resolve()) if pathlib.Path(file).suffix else file
  return unit | {"config": f"{file}{colon}{preset}", "directory": str(pathlib.Path(unit["directory"]).resolve())}
