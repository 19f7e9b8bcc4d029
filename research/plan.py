"""A sweep as a plan: which arms under which seeds, where their files lie, what is left to do.

    <directory>/sweep.json   what was asked
    <directory>/arms/<arm>/  config.json  env.json  model_table.csv  seed_<k>/...
    <directory>/results.csv  model_table.csv
"""

import json
import pathlib
from typing import NamedTuple

from ml_collections import ConfigDict

from research import arms as arm_files
from research import config as configs
from research import exit_codes, manifest, results
from research.errors import ConfigError, shown

# On a CPU only models narrower than this gain from seeds in one vmapped step: above it
# 0.7 to 1.2x was measured on one core at widths 16 to 64, and one process per core gains more.
VMAP_BELOW = 32


class Plan(NamedTuple):
  """What `execute` carries out.

  Attributes:
    spec: "FILE[:PRESET]".
    common: overrides of all arms.
    arms: of research/arms.py.
    seeds: arm -> its seeds.
    directory: of the sweep.
  """

  spec: str
  common: dict
  arms: list[arm_files.Arm]
  seeds: dict[str, tuple[int, ...]]
  directory: pathlib.Path

  @property
  def names(self) -> list[str]:
    return [arm.name for arm in self.arms]


def check_directory(plan: Plan) -> None:
  """Refuses a directory in which an arm of this name is of another config."""
  for arm in plan.arms:
    path = plan.directory / "arms" / arm.name / "config.json"
    if path.is_file() and configs.id_of(ConfigDict(json.loads(path.read_text()))) != configs.id_of(arm.config):
      raise ConfigError(f"{str(path.parent)!r} holds another config of arm {arm.name}; choose another --workdir, "
                        "or --fresh to set the old results aside.")


def set_aside(plan: Plan) -> None:
  """Moves what an earlier sweep left beside it, under a name of its own."""
  if plan.directory.exists():
    n = 1
    while (old := plan.directory.with_name(f"{plan.directory.name}.earlier-{n}")).exists():
      n += 1
    plan.directory.rename(old)


def units(plan: Plan, group: bool, processes: int = 1) -> list[dict]:
  """Returns the units that are left: see research/unit.py.

  Args:
    plan: what was asked.
    group: whether seeds may share a vmapped step wherever that is faster; else only where models are tiny.
    processes: that will work on them; a group is cut so that each has something to do.
  """
  found = []
  for arm in plan.arms:
    directory = plan.directory / "arms" / arm.name
    one = {"config": plan.spec, "overrides": {**plan.common, **arm.overrides}, "arm": arm.name,
           "directory": str(directory), "steps": arm.config.optim.steps}
    left = [seed for seed in plan.seeds[arm.name] if not results.finished(directory, seed)]
    for begun in _groups(directory, left):
      found.append(one | {"seeds": begun, "group": True})
      left = [seed for seed in left if seed not in begun]
    together = group or arm.config.model.get("width", VMAP_BELOW) < VMAP_BELOW
    size = max(1, -(-len(left) // max(1, processes // len(plan.arms)))) if together else 1
    for run in _runs(left, size):
      found.append(one | {"seeds": run, "group": len(run) > 1})
  # First seeds of all arms first: a mistake shows early, and no two processes compile one arm at once.
  return sorted(found, key=lambda unit: unit["seeds"][0])


def _groups(directory, left):
  """Returns vmapped groups of seeds that were begun and are not finished."""
  records = [json.loads(path.read_text()) for path in sorted(directory.glob("seeds_*/seeds.json"))]
  return [r["seeds"] for r in records if r["vmapped"] and all(seed in left for seed in r["seeds"])]


def _runs(seeds, size):
  """Cuts seeds into runs of neighbours, at most `size` long."""
  found = []
  for seed in seeds:
    if found and len(found[-1]) < size and found[-1][-1] == seed - 1:
      found[-1].append(seed)
    else:
      found.append([seed])
  return found


def share(plan: Plan, part: str) -> Plan:
  """Returns the I-th of N parts of a plan, "I/N": some seeds of each arm, all parts about equally many.

  Raises:
    ConfigError: not of that form, or I not from 1 to N.
  """
  i, slash, n = part.partition("/")
  if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n) <= 10_000):
    raise ConfigError(f"--units={shown(part)} must be I/N with I from 1 to N, as in 3/8 for the third of eight parts.")
  pairs = [(arm, seed) for arm, seeds in plan.seeds.items() for seed in seeds]
  mine = set(pairs[int(i) - 1::int(n)])
  return plan._replace(seeds={arm: tuple(s for s in seeds if (arm, s) in mine) for arm, seeds in plan.seeds.items()})


def execute(plan: Plan, *, jobs: int = 0, ray: str = "", resources: str = "CPU=1") -> tuple[int, list[str]]:
  """Trains what is missing; returns (exit code, one line per unit that failed).

  The code is that of an interruption if there was one, else of a refused config, else 0: a failed or diverged arm
  is for the reader of the results to judge.
  """
  left = units(plan, group=False)
  if not left:
    return exit_codes.DONE, []
  if ray:
    from research import on_ray
    done = on_ray.run(left, ray, resources)
  else:
    from research import board, local
    accelerator = local.accelerator()
    processes = 1 if accelerator else len(local.shares(jobs, sum(map(len, plan.seeds.values()))))
    left = units(plan, accelerator, processes)
    with board.Board(left) as shown:
      shown.say(f"{len(left)} units over {min(processes, len(left))} process{'es' * (processes > 1)}")
      done = local.run(left, 1 if accelerator else jobs, shown)
  failed = [f"{unit['arm']} seed {', '.join(map(str, unit['seeds']))}: {result['why'] or result['code']}"
            for unit, result in zip(left, done)
            if result["code"] not in (exit_codes.DONE, exit_codes.DIVERGED, exit_codes.PREEMPTED)]
  codes = [result["code"] for result in done]
  for code in (exit_codes.PREEMPTED, exit_codes.CONFIG):
    if code in codes:
      return code, failed
  return exit_codes.DONE, failed


def write(plan: Plan, extra: dict) -> None:
  """Writes sweep.json: what was asked."""
  plan.directory.mkdir(parents=True, exist_ok=True)
  text = {"config": plan.spec, "common": plan.common, "seeds": plan.seeds, **extra,
          "arms": [{"name": arm.name, "overrides": arm.overrides, "config_id": configs.id_of(arm.config)}
                   for arm in plan.arms]}
  manifest.write_atomically(plan.directory / "sweep.json", json.dumps(text, indent=2).encode())


def collect(plan: Plan) -> results.Results:
  """Reads all results and writes results.csv and model_table.csv of the sweep."""
  found = results.read(plan.directory, plan.seeds)
  manifest.write_atomically(plan.directory / "results.csv", results.as_csv(found).encode())
  manifest.write_atomically(plan.directory / "model_table.csv", results.tables(plan.directory, plan.names).encode())
  return found
