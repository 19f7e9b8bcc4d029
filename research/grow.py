r"""Grows the newest checkpoint of a run: `python -m research.grow --from=RUN --operator=stack --factor=2`.

Writes the folder of a new run, whose step 0 is the grown model, and prints the command that trains it on:

    python -m research.grow --config=byte_lm:cpu --from=runs/byte_lm/0123 --factor=2 --steps=400

The optimizer and the schedule of the grown model start anew, and it reads the data of another seed.
"""

import argparse
import json
import pathlib
import sys

from research import config as configs
from research import exit_codes, flags, settings
from research.errors import ConfigError, shown


def parser():
  made = flags.Parser(prog="python -m research.grow", description=__doc__, allow_abbrev=False,
                      formatter_class=argparse.RawDescriptionHelpFormatter)
  add = made.add_argument
  add("--from", dest="run", required=True, metavar="RUN", help="folder of a run, finished or not")
  add("--config", default="experiments/byte_lm.py:cpu", metavar="FILE[:PRESET]", help="experiment of that run")
  add("--operator", default="stack", help="stack, interpolate, zero or random in depth, wide in width")
  add("--factor", type=int, default=2, metavar="G", help="how many times deeper or wider")
  add("--steps", type=int, default=0, metavar="N", help="of the grown run; default those of the old one")
  add("--workdir", default="", help="folder of the grown run; default RUN-OPERATOR-G")
  return made


def main(argv=None) -> int:
  """Runs the command and returns its exit code."""
  try:
    given, overrides = flags.parse(parser(), sys.argv[1:] if argv is None else argv)
    settings.prepare()
    out = pathlib.Path(given.workdir or f"{given.run.rstrip('/')}-{given.operator}-{given.factor}")
    return _grow(given, overrides, pathlib.Path(given.run), out)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return exit_codes.CONFIG


def _grow(given, overrides, run, out) -> int:
  from research import checkpoint, growth, manifest, runs
  from research import program as programs
  if given.operator == "learn":
    raise ConfigError("--operator='learn' trains a mix of layers on a run's batches; set config.init.grow='learn'.")
  if given.operator in growth.SAME_SIZE:
    raise ConfigError(f"--operator={given.operator!r} makes other layers of the same size, which this command cannot write; "
                      f"train a run with config.init.grow={given.operator!r} and grow_steps.")
  if not (run / "config.json").is_file():
    raise ConfigError(f"--from={shown(str(run))} has no config.json; name the folder of a run.")
  if (out / "config.json").is_file():
    raise ConfigError(f"--workdir={shown(str(out))} holds a run already; choose another.")
  old = configs.from_text((run / "config.json").read_text("utf-8"))
  big = _grown_config(old, given)
  words = _as_overrides(given.config, big)
  big = configs.load(given.config)[2]
  configs.override(big, words | overrides)
  small_program, program = programs.make(old), programs.make(big)
  try:
    found = checkpoint.newest(run / "ckpt", runs.identity_of(small_program, old.seed), small_program.abstract)
  except checkpoint.CheckpointError as error:
    print(f"error: {error}", file=sys.stderr)
    return exit_codes.CRASH
  if found is None:
    raise ConfigError(f"--from={shown(str(run))} has no checkpoint yet; train it first.")
  state = growth.grown(small_program, program, found[1], program.init(big.seed), operator=given.operator)
  try:
    checkpoint.write(out / "ckpt", runs.identity_of(program, big.seed), 0, state)
  except OSError as error:
    print(f"error: {error}", file=sys.stderr)
    return exit_codes.CRASH
  manifest.write_atomically(out / "config.json", configs.text_of(big).encode())
  said = [f"--config.{key}={_typed(value)}" for key, value in (words | overrides).items()]
  print(f"step {found[0]} of {run} grown by {given.operator} x {given.factor}; train it on with\n"
        f"  {' '.join(['python -m research.run', f'--config={given.config}', *said, f'--workdir={out}'])}")
  return exit_codes.DONE


def _grown_config(old, given):
  """Returns the config of the grown run; `growth.small_config` of it says what cannot grow."""
  from research import growth
  made = old.copy_and_resolve_references()
  size = "width" if given.operator == "wide" else "depth"
  made.model[size] = old.model[size] * max(given.factor, 1)
  made.optim.steps = given.steps or old.optim.steps
  made.seed = (old.seed + growth.SHIFT) % 2**31
  asking = made.copy_and_resolve_references()
  with asking.unlocked():
    asking.init.update(grow=given.operator, grow_factor=given.factor, grow_steps=1)
  growth.small_config(asking)
  return made


def _as_overrides(spec, config) -> dict:
  """Returns the leaves in which a config differs from that of "FILE[:PRESET]"."""
  theirs, ours = _leaves(configs.load(spec)[2]), _leaves(config)
  missing = sorted(theirs.keys() - ours.keys() - {k for k in theirs if k.rpartition(".")[0] in _renamed(theirs, ours)})
  if missing:
    raise ConfigError(f"--config={shown(spec)} sets config.{missing[0]} and the run does not; "
                      "name the experiment and the preset of that run.")
  return {k: v for k, v in ours.items() if json.dumps(v) != json.dumps(theirs.get(k))}


def _renamed(theirs, ours):
  return {k.removesuffix(".name") for k in theirs if k.endswith(".name") and theirs[k] != ours.get(k)}


def _leaves(node, at="") -> dict:
  found = {}
  for k in node:
    if hasattr(node[k], "keys"):
      found |= _leaves(node[k], f"{at}{k}.")
    else:
      found[at + k] = node[k]
  return found


def _typed(value):
  return ",".join(map(str, value)) if isinstance(value, tuple) else value


if __name__ == "__main__":
  sys.exit(main())
