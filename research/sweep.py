r"""Compares arms over seeds: `python -m research.sweep --config=FILE[:PRESET] --vary="model.placement=pre,post"`.

Without --vary the arms are those of the experiment file. The same seeds, data and
draws serve every arm, so differences are paired. The same command again finishes
an interrupted sweep and repeats nothing that is finished.
"""

import argparse
import json
import pathlib
import sys

from research import arms as arm_files
from research import exit_codes, flags, grid, plan, settings, sweep_table
from research import config as configs
from research.errors import ConfigError


def parser():
  made = flags.Parser(prog="python -m research.sweep", description=__doc__.splitlines()[0], allow_abbrev=False,
                      formatter_class=argparse.RawDescriptionHelpFormatter, epilog=grid.__doc__)
  add = made.add_argument
  add("--config", required=True, metavar="FILE[:PRESET]", help="experiment file, or its name")
  add("--vary", action="append", default=[], metavar="KEY=A,B;...", help="what to vary; see below")
  add("--seeds", default="0:5", metavar="A:B", help="seeds A to B-1 for every arm")
  add("--match", default="", metavar="BUDGET[:KEY]",
      help="parameters, flops, state or tokens: gives all arms the first one's budget by changing model.width, or KEY")
  add("--against", default="", metavar="ARM", help="what the others are compared with; default the first arm")
  add("--metric", default="eval/loss", help="what the table compares")
  add("--jobs", type=int, default=0, metavar="N", help="processes; default one per core, one on an accelerator")
  add("--ray", default="", metavar="auto|ADDRESS", help="run the units on a Ray cluster (extra: ray)")
  add("--resources", default="CPU=1", metavar="NAME=N,...", help="what one unit takes of a Ray cluster")
  add("--units", default="", metavar="I/N", help="train only the I-th of N parts, as a task of a SLURM array does")
  add("--workdir", default="", help="directory of the sweep; default runs/<experiment>/sweep-<id>")
  add("--fresh", action="store_true", help="move an earlier sweep aside and start anew")
  add("--dry_run", action="store_true", help="print the arms and what is left to do, and stop")
  return made


def main(argv=None) -> int:
  """Runs the command and returns its exit code."""
  try:
    given, common = flags.parse(parser(), sys.argv[1:] if argv is None else argv)
    name, preset, _ = configs.load(given.config)
    print(f"strata: sweep of {name}:{preset}", flush=True)
    asked = _plan(given, common, name)
    plan.check_directory(asked)
    if given.dry_run:
      return _show(asked)
    plan.write(asked, {"vary": given.vary, "match": given.match, "against": _against(given, asked),
                       "metric": given.metric})
    mine = plan.share(asked, given.units) if given.units else asked
    code, failed = plan.execute(mine, jobs=given.jobs, ray=given.ray, resources=given.resources)
    for line in failed:
      print(f"failed: {line}", file=sys.stderr)
    if code == exit_codes.DONE and given.units and (left := plan.units(asked, group=False)):
      print(f"{len(left)} units are left for the other parts; without --units the same command then compares them.")
    elif code == exit_codes.DONE:
      found = plan.collect(asked)
      sweep_table.show(asked, found, given.metric, _against(given, asked))
      from research import study_figures
      study_figures.draw(asked, found)
    return code or (exit_codes.CRASH if failed else exit_codes.DONE)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return exit_codes.CONFIG


def _against(given, asked):
  if given.against and given.against not in asked.names:
    from research.errors import nearest
    raise ConfigError(f"--against={given.against!r} is no arm; {nearest(given.against, asked.names)}")
  return given.against or asked.names[0]


def _plan(given, common, name):
  """Returns the plan; what --match chose once is read back and not solved again."""
  seeds = flags.seeds_of(given.seeds)
  if given.jobs < 0:
    raise ConfigError(f"--jobs={given.jobs} must be at least 0; 0 takes one process per core.")
  wanted = arm_files.named(grid.parse(given.vary)) if given.vary else arm_files.of_experiment(given.config)
  arms = arm_files.make(given.config, common, wanted)
  key = (configs.id_of(arm_files.config_of(given.config, common)), given.match,
         *((arm.name, configs.id_of(arm.config)) for arm in arms))
  directory = pathlib.Path(given.workdir or pathlib.Path("runs") / name / f"sweep-{arm_files.digest(key)}")
  asked = plan.Plan(given.config, common, arms, {arm.name: seeds for arm in arms}, directory)
  if given.fresh and not given.dry_run:
    plan.set_aside(asked)
  if given.match:
    asked = asked._replace(arms=_matched(given, common, arms, directory))
  return asked


def _matched(given, common, arms, directory):
  record = directory / "sweep.json"
  if record.is_file() and json.loads(record.read_text())["match"] == given.match:
    known = {arm["name"]: arm["overrides"] for arm in json.loads(record.read_text())["arms"]}
    if all(known.get(arm.name, {}).items() >= arm.overrides.items() for arm in arms):
      return arm_files.make(given.config, common, {arm.name: known[arm.name] for arm in arms})
  settings.prepare(only_trace=True)
  from research import match
  return match.match(given.config, common, arms, given.match, lambda text: print(f"match: {text}", flush=True))


def _show(asked):
  for arm in asked.arms:
    changes = ", ".join(f"{key}={value}" for key, value in arm.overrides.items()) or "the base config"
    print(f"  {arm.name}: {changes}")
  left = plan.units(asked, group=False)
  print(f"{len(asked.arms)} arms, {sum(map(len, asked.seeds.values()))} runs, {len(left)} units left, in {asked.directory}")
  return exit_codes.DONE


if __name__ == "__main__":
  settings.ask_for_huge_pages()
  sys.exit(main())
