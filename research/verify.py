r"""Judges claims: `python -m research.verify [CLAIM | EXPERIMENT ...] [--all] [--family NAME] [--preset cpu]`.

Runs the arms that the claims need, over the seeds they name, and says HOLDS, FAILS or
INCONCLUSIVE with the interval. Finished runs are never repeated; --record keeps the
verdict, the figures and what they were measured on under research/results/.

Exit codes: 0 judged, 2 configuration, 42 stopped by a signal after a save; with --strict
10 where a claim failed, else 11 where one is inconclusive.
"""

import argparse
import json
import pathlib
import sys

from research import arms as arm_files
from research import exit_codes, flags, settings
from research import config as configs
from research.errors import ConfigError, nearest, shown


def parser():
  made = flags.Parser(prog="python -m research.verify", description=__doc__.splitlines()[0], allow_abbrev=False,
                      formatter_class=argparse.RawDescriptionHelpFormatter, epilog=__doc__.partition("\n\n")[2])
  add = made.add_argument
  add("names", nargs="*", metavar="CLAIM|EXPERIMENT", help="a claim's id, or an experiment's name or file for all of its")
  add("--all", action="store_true", help="every claim of every experiment")
  add("--family", default="", help="every claim of the experiments of one family (FAMILY = \"...\" in the file)")
  add("--preset", default="cpu", help="of the experiments: cpu, smoke or paper")
  add("--strict", action="store_true", help="exit 10 if a claim fails, 11 if one is inconclusive")
  add("--record", action="store_true", help="keep verdicts and figures under research/results/")
  add("--list", action="store_true", help="list the claims and stop")
  add("--json", action="store_true", help="with --list: as JSON")
  add("--jobs", type=int, default=0, metavar="N", help="processes; default one per core, one on an accelerator")
  add("--ray", default="", metavar="auto|ADDRESS", help="run the units on a Ray cluster (extra: ray)")
  add("--resources", default="CPU=1", metavar="NAME=N,...", help="what one unit takes of a Ray cluster")
  add("--workdir", default="", help="directory of the runs; default runs/<experiment>/verify-<preset>-<id>")
  add("--fresh", action="store_true", help="move earlier runs aside and start anew")
  return made


def main(argv=None) -> int:
  """Runs the command and returns its exit code."""
  try:
    given, common = flags.parse(parser(), sys.argv[1:] if argv is None else argv)
    if given.list:
      from research import claim_list
      print(claim_list.as_json() if given.json else claim_list.as_text())
      return exit_codes.DONE
    if common and given.record:
      raise ConfigError("--record keeps what the experiment file says; leave out "
                        f"{', '.join(f'--config.{key}' for key in common)}.")
    verdicts = []
    chosen = _chosen(given)
    if given.workdir and len(chosen) > 1:
      raise ConfigError(f"--workdir is of one experiment, these claims are of {', '.join(chosen)}; leave it out.")
    for file, claims in chosen.items():
      code, judged = _experiment(given, common, file, claims)
      if code != exit_codes.DONE:
        return code
      verdicts += judged
    return _code(verdicts) if given.strict else exit_codes.DONE
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return exit_codes.CONFIG


def _code(verdicts):
  words = [verdict.verdict for verdict in verdicts]
  if "FAILS" in words:
    return exit_codes.CLAIM_FAILED
  return exit_codes.INCONCLUSIVE if "INCONCLUSIVE" in words else exit_codes.DONE


def _chosen(given) -> dict[str, list]:
  """Returns experiment file -> claims that the command names."""
  known = configs.experiment_names()
  if given.all or given.family:
    families = {file: getattr(configs.load_file(file), "FAMILY", "") for file in known}
    if given.family and given.family not in families.values():
      raise ConfigError(f"--family={shown(given.family)}: no experiment is of it; "
                        f"{nearest(given.family, {f for f in families.values() if f})}")
    found = {file: arm_files.claims_of(file) for file in known if not given.family or families[file] == given.family}
    return {file: claims for file, claims in found.items() if claims}
  if not given.names:
    raise ConfigError("name a claim or an experiment, or give --all; --list says what there is.")
  chosen = {}
  for name in given.names:
    if name in known or pathlib.Path(name).suffix == ".py":
      claims = arm_files.claims_of(name)
      if not claims:
        raise ConfigError(f"experiment {shown(name)} has no claims().")
    else:
      name, claims = _claim(name, known)
    chosen[name] = [*chosen.get(name, []), *(c for c in claims if c not in chosen.get(name, []))]
  return chosen


def _claim(name, known):
  ids = set(known)
  for file in known:
    claims = arm_files.claims_of(file)
    ids |= {claim.id for claim in claims}
    if found := [claim for claim in claims if claim.id == name]:
      return file, found
  raise ConfigError(f"{shown(name)} is no claim and no experiment; {nearest(name, ids)}")


def _experiment(given, common, file, claims):
  """Runs and judges claims of one experiment; returns (code, verdicts)."""
  from research import plan, verdict_files
  spec = f"{file}:{given.preset}"
  asked = _plan(given, common, spec, claims)
  if given.fresh:
    plan.set_aside(asked)
  plan.check_directory(asked)
  print(f"strata: {len(claims)} claim{'s' * (len(claims) > 1)} of {spec}, files in {asked.directory}", flush=True)
  if plan.units(asked, group=False):
    settings.prepare(only_trace=True)
    from research import foresee
    foresee.check(asked, claims)
  plan.write(asked, {"claims": [claim.id for claim in claims]})
  code, failed = plan.execute(asked, jobs=given.jobs, ray=given.ray, resources=given.resources)
  for line in failed:
    print(f"failed: {line}", file=sys.stderr)
  if code != exit_codes.DONE:
    return code, []
  verdicts = verdict_files.judged(asked, claims)
  verdict_files.show(asked, verdicts)
  if given.record:
    verdict_files.record(asked, verdicts, given.preset)
  return exit_codes.DONE, verdicts


def _plan(given, common, spec, claims):
  """Returns the plan of the arms of these claims, each with as many seeds as its most demanding claim."""
  from research import plan
  arms = {name: over for name, over in arm_files.of_experiment(spec).items()
          if any(name in claim.needs for claim in claims)}
  made = arm_files.make(spec, common, arms)
  name = pathlib.Path(spec.partition(":")[0]).stem
  base = configs.id_of(arm_files.config_of(spec, common))
  directory = pathlib.Path(given.workdir or pathlib.Path("runs") / name / f"verify-{given.preset}-{base}")
  seeds = {arm.name: tuple(range(max(c.seeds for c in claims if arm.name in c.needs))) for arm in made}
  return plan.Plan(spec, common, made, seeds, directory)


if __name__ == "__main__":
  settings.ask_for_huge_pages()
  sys.exit(main())
