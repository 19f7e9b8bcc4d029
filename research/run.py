r"""Trains one experiment: `python -m research.run --config=FILE[:PRESET] --config.key=value`.

Without arguments it runs experiments/byte_lm.py:cpu. The same command again
continues an interrupted run and reports a finished one.
"""

import contextlib
import pathlib
import sys

from research import config as configs
from research import exit_codes, flags, settings
from research.errors import ConfigError

DEFAULT = "experiments/byte_lm.py:cpu"


def parser():
  made = flags.Parser(prog="python -m research.run", description=__doc__.splitlines()[0],
                   allow_abbrev=False,
                   epilog="Any leaf of the config can be set: --config.optim.lr=1e-3. The file is "
                          "Python and runs with your rights; everything else loaded is data.")
  add = made.add_argument
  add("--config", default=DEFAULT, metavar="FILE[:PRESET]", help="experiment file, or its name")
  add("--workdir", default="", help="directory of the run; default runs/<experiment>/<config id>")
  add("--seeds", default="", metavar="A:B", help="train seeds A to B-1, each with draws and data of its own")
  add("--vectorize", default="auto", choices=("auto", "always", "never"),
      help="seeds in one vmapped step, one after the other, or (auto) what a clock finds faster, kept in seeds.json; "
           "the two differ in the last bits")
  add("--list", action="store_true", help="list the experiments and stop")
  add("--json", action="store_true", help="with --list: as JSON")
  add("--describe", action="store_true", help="print what the experiment asks and costs, and stop")
  add("--dry_run", action="store_true", help="print the resolved config and what it costs, and stop")
  add("--eval_only", action="store_true", help="evaluate the newest checkpoint and stop")
  add("--log", default="jsonl", choices=("jsonl", "tensorboard", "wandb"),
      help="where metrics go besides metrics.jsonl")
  add("--fresh", action="store_true", help="move an earlier run of this config aside and start anew")
  add("--fake_devices", type=int, default=0, metavar="N", help="split the CPU into N devices")
  add("--distributed", default="no", choices=("no", "auto"), help="call jax.distributed.initialize()")
  return made


def main(argv=None) -> int:
  """Runs the command and returns its exit code."""
  try:
    given, overrides = flags.parse(parser(), sys.argv[1:] if argv is None else argv)
    if given.list:
      from research import listing
      print(listing.as_json() if given.json else listing.as_text())
      return exit_codes.DONE
    name, preset, config = configs.load(given.config)
    seeds = flags.seeds_of(given.seeds) if given.seeds else ()
    if given.describe:
      from research import listing
      print(listing.describe(name))
      return exit_codes.DONE
    print(f"strata: {name}:{preset}", flush=True)
    if given.fake_devices < 0:
      raise ConfigError(f"--fake_devices={given.fake_devices} must be at least 1.")
    settings.prepare(fake_devices=given.fake_devices, distributed=given.distributed == "auto")
    for note in configs.override(config, overrides):
      print(note)
    from research import runs
    if given.dry_run:
      return runs.dry_run(config)
    directory = pathlib.Path(given.workdir or _directory(name, config, seeds))
    measure = getattr(configs.module_of(given.config), "measure", None)
    return runs.run(given, name, config, seeds, directory, measure)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return exit_codes.CONFIG


def _directory(name, config, seeds):
  suffix = f"-seeds_{seeds[0]}_{seeds[-1] + 1}" if seeds else ""
  return pathlib.Path("runs") / name / (configs.id_of(config) + suffix)


if __name__ == "__main__":
  settings.ask_for_huge_pages()
  with contextlib.suppress(BrokenPipeError):  # `| head` closes the pipe; that is no fault
    sys.exit(main())
