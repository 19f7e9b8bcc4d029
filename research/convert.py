r"""Rewrites a finished run as an equal model: `python -m research.convert --from RUN --to pre_crms_norm`.

The new run directory has the converted parameters as its checkpoint, the config that builds them and the
optimizer as it begins. What is printed: the largest difference of a logit and the time of a forward pass of both.
"""

import contextlib
import json
import pathlib
import sys

from research import config as configs
from research import exit_codes, flags, settings
from research.errors import ConfigError

TO = ("to_rms", "pre_crms_norm", "fused")


def parser():
  made = flags.Parser(prog="python -m research.convert", description=__doc__.splitlines()[0], allow_abbrev=False)
  made.add_argument("--from", dest="source", required=True, metavar="RUN", help="directory of a finished run")
  made.add_argument("--to", required=True, metavar="FORM", help=f"one of {', '.join(TO)}")
  made.add_argument("--workdir", default="", metavar="DIR", help="of the converted run; default RUN-FORM")
  return made


def main(argv=None) -> int:
  """Runs the command and returns its exit code."""
  try:
    given, overrides = flags.parse(parser(), sys.argv[1:] if argv is None else argv)
    if overrides:
      raise ConfigError(f"--config.{min(overrides)}: the config is that of the run; only --from, --to and --workdir are read.")
    source = pathlib.Path(given.source)
    target = pathlib.Path(given.workdir or f"{source}-{given.to}")
    settings.prepare()
    for line in run(source, target, given.to):
      print(line)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return exit_codes.CONFIG
  except OSError as error:
    print(f"error: --from={given.source!r} cannot be converted: {error}.", file=sys.stderr)
    return exit_codes.CONFIG
  return exit_codes.DONE


def run(source: pathlib.Path, target: pathlib.Path, to: str) -> list[str]:
  """Converts the run in one directory into another; returns what is to be said.

  Raises:
    ConfigError: there is no finished run, it cannot be converted, or the other directory is not empty.
  """
  import jax
  import jax.numpy as jnp
  from research import conversion
  from research import program as programs
  if to not in conversion.CHAINS:
    conversion.convert(None, None, {}, to)
  if target.exists() and any(target.iterdir()):
    raise ConfigError(f"--workdir={str(target)!r} is not empty; choose another.")
  config, seed = _config_of(source)
  program = programs.make(config)
  state = _restored(program, seed, source)
  variables = {"params": state.params, **state.extra}
  new, params, changed = conversion.convert(config, program.task, variables, to)
  after = programs.make(new)
  fresh = after.init(seed)
  placed = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), params, fresh.params)
  extra = {k: conversion.kept(v, state.extra[k]) for k, v in fresh.extra.items()}
  made = fresh.replace(params=placed, extra=extra, step=state.step, cursor=state.cursor, key=state.key)
  batch = jax.tree.map(jnp.asarray, program.task.batch("validation", 0))
  found = conversion.compared(program.task, batch, (program.model, variables), (after.model, {"params": placed, **extra}))
  _write(target, after, made, seed, dict(source=str(source), to=to, overrides=changed, **found))
  return [f"{to}: {', '.join(f'config.{k}={v}' for k, v in changed.items())}",
          f"largest difference {found['logits']:.2e} of the largest logit, {found['loss']:.2e} nats of loss",
          f"forward pass {found['before_ms']:.3f} ms before, {found['after_ms']:.3f} ms after",
          f"files in {target}"]


def _config_of(source):
  """Returns (config, seed) of a run, or of one seed of an arm."""
  for directory in (source, source.parent):
    path = directory / "config.json"
    if path.is_file() and (directory == source or source.name.startswith("seed_")):
      break
  else:
    raise ConfigError(f"--from={str(source)!r} holds no run (config.json); train one with research.run.")
  try:
    config = configs.from_text(path.read_text("utf-8"))
  except ValueError as error:
    raise ConfigError(f"--from={str(source)!r}: config.json cannot be read: {error}.") from error
  number = source.name.removeprefix("seed_")
  return config, int(number) if directory != source and number.isdecimal() else config.seed


def _restored(program, seed, source):
  from research import runs
  from research.checkpoint import CheckpointError, newest
  try:
    found = newest(source / "ckpt", runs.identity_of(program, seed), program.abstract, allow_new_data=True)
  except CheckpointError as error:
    raise ConfigError(f"--from={str(source)!r}: {error}") from error
  if found is None:
    raise ConfigError(f"--from={str(source)!r} holds no checkpoint; train the run first.")
  step, state = found
  if step < (steps := program.config.optim.steps):
    raise ConfigError(f"--from={str(source)!r} stands at step {step} of {steps}; finish it with research.run first.")
  return state


def _write(target, program, state, seed, told):
  """Writes the run directory; final.json, which makes it a finished one, is the last."""
  from research import checkpoint, manifest, monitor, runs
  target.mkdir(parents=True, exist_ok=True)
  write = lambda name, text: manifest.write_atomically(target / name, text.encode())
  write("config.json", configs.text_of(program.config))
  write("env.json", json.dumps(monitor.environment(), indent=2))
  write("conversion.json", json.dumps(told, indent=2))
  checkpoint.write(target / "ckpt", runs.identity_of(program, seed), int(state.step), state)
  evaluated = {k: float(v) for k, v in program.evaluated(state, 0).items()}
  numbers = {f"conversion/{k}": told[k] for k in ("logits", "loss", "before_ms", "after_ms")}
  final = {**evaluated, **numbers, "recompiled": 0, "skipped": int(state.skipped),
           "params_sha256": checkpoint.params_sha256(state.params)}
  write("final.json", json.dumps(final, indent=2))


if __name__ == "__main__":
  with contextlib.suppress(BrokenPipeError):  # `| head` closes the pipe; that is no fault
    sys.exit(main())
