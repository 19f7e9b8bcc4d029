"""One unit of a sweep: one arm under one seed, or under a few seeds side by side in one vmapped step.

A unit is data, so that it can cross to another process or machine:

    {"config": "experiments/recall.py:cpu", "overrides": {"model.placement": "post"}, "seeds": [0],
     "directory": ".../arms/post", "group": false}

Its results are a function of it, and lie in directory/seed_<k>; checkpoints of a vmapped group in
directory/seeds_<a>_<b>. A finished seed is never trained again, one that diverged neither.
"""

import contextlib
import functools
import json
import pathlib
import time
import traceback

import jax.numpy as jnp

from research import arms, exit_codes, manifest, monitor, program, results, runs
from research import config as configs
from research import seeds as many
from research.errors import ConfigError
from research.run_lock import RunLock, WorkdirBusy

# How long to wait for a run of a killed sweep, or of a lost node, to let go of its directory: a lock of
# another host is stale after three heartbeats.
BUSY_S = 45


def run_unit(unit: dict, progress=None) -> dict:
  """Trains what is missing; returns {"code", "seconds", "why"}.

  Args:
    unit: see the file's first lines.
    progress: context manager with say(text) and update(step, loss, tokens_per_s), or None.
  """
  begun, worked, why = time.monotonic(), time.process_time(), ""
  directory = pathlib.Path(unit["directory"])
  directory.mkdir(parents=True, exist_ok=True)
  log = directory / f"log-seed_{unit['seeds'][0]}.txt"
  with open(log, "a", encoding="utf-8") as text, contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
    try:
      code = _train(unit, directory, progress)
    except ConfigError as error:
      code, why = exit_codes.CONFIG, str(error)
    except Exception as error:  # one arm's fault must not end the others; the trace is in its log
      traceback.print_exc()
      code, why = exit_codes.CRASH, f"{type(error).__name__}: {str(error)[:300]} (see {log})"
  done = {"code": code, "seconds": round(time.monotonic() - begun, 2), "why": why}
  with open(directory / "units.jsonl", "a", encoding="utf-8") as file:
    cpu = round(time.process_time() - worked, 2)  # what the clock says depends on who else is at work
    file.write(json.dumps({"seeds": unit["seeds"], "cpu_seconds": cpu, **done}) + "\n")
  return done


def _train(unit, directory, progress):
  config, measure = _loaded(unit["config"], json.dumps(unit["overrides"], sort_keys=True))
  if not (directory / "config.json").is_file():
    manifest.write_atomically(directory / "env.json", json.dumps(monitor.environment(), indent=2).encode())
    manifest.write_atomically(directory / "config.json", configs.text_of(config).encode())
  seeds = [seed for seed in unit["seeds"] if not results.finished(directory, seed)]
  code = exit_codes.DONE
  if unit["group"] and len(seeds) > 1:
    code, seeds = _together(unit, config, seeds, directory, progress, measure)
  for seed in seeds:
    out = directory / f"seed_{seed}"
    code = _locked(out, lambda: _models(unit, config, 0, seed, out, [out], progress, measure))
    if code == exit_codes.DIVERGED:
      manifest.write_atomically(out / "diverged.json", b'{"code": 3}')
    elif code != exit_codes.DONE:
      break
  return code


def _together(unit, config, seeds, directory, progress, measure):
  """Trains seeds in one vmapped step if that is faster; returns (code, seeds left to train one by one)."""
  group = directory / f"seeds_{seeds[0]}_{seeds[-1] + 1}"
  group.mkdir(exist_ok=True)
  record = group / "seeds.json"
  if record.is_file():
    vmapped = json.loads(record.read_text())["vmapped"]
  else:
    built = many.faster(config, tuple(seeds), print)
    vmapped = built is not None
    if vmapped:
      _keep(config, len(seeds), built)
    # What was chosen first stays chosen: the bits of a model depend on it.
    manifest.write_atomically(record, json.dumps({"seeds": seeds, "vmapped": vmapped}).encode())
  if not vmapped:
    return exit_codes.DONE, seeds
  outputs = [directory / f"seed_{seed}" for seed in seeds]
  code = _locked(group, lambda: _models(unit, config, len(seeds), seeds, group, outputs, progress, measure))
  # One seed that diverges ends the group; alone, each of them shows what it does.
  return (exit_codes.DONE, seeds) if code == exit_codes.DIVERGED else (code, [])


def _models(unit, config, group, seed, directory, outputs, progress, measure):
  for out in outputs:
    out.mkdir(parents=True, exist_ok=True)
  name = pathlib.Path(unit["config"].partition(":")[0]).stem
  return runs.train_models(name, _program(config, group), jnp.asarray(seed) if group else seed, directory, outputs,
                           measure=measure, progress=progress, table=pathlib.Path(unit["directory"]),
                           drawn=int(unit["seeds"][0] == 0))


def _locked(directory, train):
  """Runs `train` as the only process that writes to the directory."""
  deadline = time.monotonic() + BUSY_S
  while True:
    try:
      with RunLock(directory):
        return train()
    except WorkdirBusy:
      if time.monotonic() > deadline:
        raise
      time.sleep(0.5)


@functools.lru_cache(maxsize=4)
def _loaded(spec, overrides):
  """Returns (config, the experiment's `measure` or None)."""
  return arms.config_of(spec, json.loads(overrides)), getattr(configs.module_of(spec), "measure", None)


_PROGRAMS = {}
_KEPT = 8  # programs: seeds of a few arms may come in turn


def _program(config, group):
  """Returns the program of an arm; the next seed of it needs nothing traced or compiled anew."""
  key = configs.text_of(config), group
  if key not in _PROGRAMS:
    _keep(config, group, program.make(config, seeds=group))
  return _PROGRAMS[key]


def _keep(config, group, made):
  if len(_PROGRAMS) == _KEPT:
    del _PROGRAMS[next(iter(_PROGRAMS))]
  _PROGRAMS[configs.text_of(config), group] = made
