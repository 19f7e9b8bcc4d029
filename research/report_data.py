"""What a report shows, read from the directories of runs and sweeps; whatever is missing or torn is noted, not fatal.

    a run             config.json  metrics.jsonl  final.json ...
    seeds of a run    config.json  seed_<k>/...
    a sweep           sweep.json  arms/<arm>/config.json  arms/<arm>/seed_<k>/...  verdict.json

All three become one `Study`: arms, and below them runs.
"""

import csv
import io
import json
import math
import pathlib
import re
import statistics
from typing import Any, NamedTuple

from research import claims, metrics
from research.errors import ConfigError, shown
from research.results import COUNTED, Results

DONE, DIVERGED, UNFINISHED, ABSENT = "done", "diverged", "unfinished", "not run"
RUN_FILES = ("config.json", "metrics.jsonl", "final.json", "diverged.json")


class Run(NamedTuple):
  """One arm under one seed: what it logged, and what it came to.

  Attributes:
    seed: its number.
    status: DONE, DIVERGED, UNFINISHED or ABSENT.
    records: of metrics.jsonl.
    final: metric -> number; {} unless DONE.
    depth: records of depth.jsonl.
    samples: text, "" if none.
  """

  seed: int
  status: str
  records: list[dict]
  final: dict[str, float]
  depth: list[dict]
  samples: str


class Arm(NamedTuple):
  """One thing compared.

  Attributes:
    name: unique in its study.
    overrides: dotted key -> value, where a sweep says them.
    config: nested, {} if it was never written.
    environment: of env.json.
    table: quantity of model_table.csv -> number.
    runs: one per seed.
  """

  name: str
  overrides: dict[str, Any]
  config: dict
  environment: dict
  table: dict[str, float]
  runs: list[Run]

  def of(self, metric: str) -> dict[int, float]:
    """Returns seed -> final value of a metric."""
    return {run.seed: run.final[metric] for run in self.runs if metric in run.final}

  @property
  def step_ms(self) -> float | None:
    """Median time of a training step over all logged intervals of all seeds, None if none was timed."""
    times = [r["tokens"] / r["step"] / r["tokens_per_s"] for run in self.runs for r in run.records
             if r.get("tokens_per_s") and r.get("step") and r.get("tokens")]
    return 1e3 * statistics.median(times) if times else None


class Study(NamedTuple):
  """One directory.

  Attributes:
    kind: "run", "seeds" or "sweep".
    title: of its section.
    directory: it was read from.
    arms: in the order asked for; the first is what others are compared with, unless `against` names another.
    against: name of that arm.
    verdicts: records of research/judge.py.
    notes: what is missing, one line each.
    dates: first and last change of its files, in seconds since 1970; None if there are none.
  """

  kind: str
  title: str
  directory: pathlib.Path
  arms: list[Arm]
  against: str
  verdicts: list[dict]
  notes: list[str]
  dates: tuple[float, float] | None


def read(directory: pathlib.Path) -> Study:
  """Returns what a directory holds.

  Raises:
    ConfigError: it is missing, or holds neither a run nor a sweep.
  """
  if not directory.is_dir():
    raise ConfigError(f"{str(directory)!r} is no directory; give those of runs or sweeps, as in runs/recall/<id>.")
  notes = []
  if (directory / "sweep.json").is_file():
    study = _sweep(directory, notes)
  elif any((directory / name).is_file() for name in RUN_FILES) or _seeds(directory):
    study = _run(directory, notes)
  else:
    inside = sorted({path.parent.relative_to(directory).as_posix() for depth in ("*", "*/*")
                     for name in ("sweep.json", "config.json") for path in directory.glob(f"{depth}/{name}")})
    hint = f"it has {', '.join(inside[:5])}: name one of these" if inside else "train something into it first"
    raise ConfigError(f"{str(directory)!r} holds neither a run (config.json) nor a sweep (sweep.json); {hint}.")
  return study


def results(study: Study) -> Results:
  """Returns the final metrics in the form that research/judge.py and sweep_plots.py take."""
  values = {arm.name: {metric: arm.of(metric) for metric in final_metrics([arm])} for arm in study.arms}
  missing = {arm.name: {run.seed: run.status for run in arm.runs if run.status != DONE} for arm in study.arms}
  return Results(values, {arm: lost for arm, lost in missing.items() if lost})


def final_metrics(arms: list[Arm]) -> list[str]:
  """Returns the names of final metrics that any arm has, the validation loss first."""
  names = {name for arm in arms for run in arm.runs for name in run.final}
  return sorted(names, key=lambda name: (name != "eval/loss", not name.startswith("eval/"), name))


def of_the_study(metrics: list[str], most: int) -> list[str]:
  """Returns the first metrics that a study is about; what a layer shows has its own figure of profiles."""
  return [metric for metric in metrics if not metric.startswith("depth/")][:most]


def _sweep(directory, notes):
  asked = _json(directory / "sweep.json", dict, notes)
  of_arm = asked.get("seeds") if isinstance(asked.get("seeds"), dict) else {}
  arms = []
  for entry in _list(asked.get("arms")):
    name = entry.get("name") if isinstance(entry, dict) else None
    # A name is joined to a path: what research/arms.py would refuse is not looked for.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
      notes.append(f"sweep.json has an arm without a proper name: {shown(name)}")
      continue
    overrides = entry.get("overrides")
    arms.append(_arm(directory / "arms" / name, name, overrides if isinstance(overrides, dict) else {},
                     [seed for seed in _list(of_arm.get(name)) if isinstance(seed, int)], notes))
  if not arms:
    notes.append("sweep.json names no arms")
  verdicts = _json(directory / "verdict.json", list, notes) if (directory / "verdict.json").is_file() else []
  names = [arm.name for arm in arms]
  against = asked.get("against") if asked.get("against") in names else (names[0] if names else "")
  file, _, preset = str(asked.get("config") or directory.name).partition(":")
  title = f"{pathlib.PurePath(file).stem}:{preset}" if preset else pathlib.PurePath(file).stem
  return Study("sweep", title, directory, arms, against, [v for v in verdicts if _is_verdict(v, notes)],
               notes + _missing(arms), _dates(directory))


def _is_verdict(record, notes) -> bool:
  """Whether a record has what every verdict has; a note if not."""
  texts = ("id", "verdict", "metric")
  good = (isinstance(record, dict) and all(isinstance(record.get(key), str) for key in texts)
          and isinstance(record.get("arms"), list) and all(isinstance(arm, str) for arm in record["arms"])
          and isinstance(record.get("seeds") or [], list) and isinstance(record.get("values"), dict)
          and all(isinstance(of_seed, dict) and all(map(_is_number, of_seed.values()))
                  for of_seed in record["values"].values())
          and _is_interval(record.get("interval")) and (record.get("effect") is None or _is_number(record["effect"]))
          and isinstance(record.get("scale") or [], list) and all(map(_is_number, record.get("scale") or [])))
  if good and record.get("kind") == "threshold":
    try:
      claims.quantity(record.get("bound"), "bound", record["id"])
    except ConfigError:
      good = False
  if not good:
    notes.append(f"verdict.json has a record that is no verdict: {shown(record)}")
  return good


def _is_interval(value) -> bool:
  return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)))


def _run(directory, notes):
  seeds = _seeds(directory)
  if (directory / "seeds.json").is_file():
    asked = _list(_json(directory / "seeds.json", dict, notes).get("seeds"))
    seeds = [seed for seed in asked if isinstance(seed, int)] or seeds
  home = directory.resolve()
  title = f"{home.parent.name}/{home.name}"
  # runs/<experiment>/<id> goes by its experiment, arms/<arm> by itself
  name = home.name if home.parent.name in ("arms", "") else home.parent.name
  arm = _arm(directory, name, {}, seeds, notes)
  if not seeds:
    inner = re.fullmatch(r"seed_(\d{1,9})", home.name)  # one of a group, whose config lies above
    seed = int(inner[1]) if inner else arm.config.get("seed", 0)
    arm = arm._replace(runs=[_one(directory, seed if isinstance(seed, int) else 0, notes)])
  return Study("seeds" if seeds else "run", title, directory, [arm], arm.name, [], notes + _missing([arm]),
               _dates(directory))


def _seeds(directory) -> list[int]:
  """Returns the seeds that have a folder."""
  found = [re.fullmatch(r"seed_(\d{1,9})", path.name) for path in directory.glob("seed_*") if path.is_dir()]
  return sorted(int(match[1]) for match in found if match)


def _arm(directory, name, overrides, seeds, notes):
  runs = [_one(directory / f"seed_{seed}", seed, notes) for seed in seeds]
  folders = [directory, *(directory / f"seed_{seed}" for seed in seeds)]
  table = next((_table(folder / "model_table.csv") for folder in folders if (folder / "model_table.csv").is_file()), {})
  config, environment = ({} if not (directory / file).is_file() else _json(directory / file, dict, notes)
                         for file in ("config.json", "env.json"))
  return Arm(name, overrides, config, environment, table, runs)


def _one(directory, seed, notes):
  records = [{key: value for key, value in record.items() if _is_number(value)}
             for record in _records(directory / "metrics.jsonl", notes)]
  final, status = {}, UNFINISHED if records else ABSENT
  if (directory / "diverged.json").is_file():
    status = DIVERGED
  elif (directory / "final.json").is_file():
    told = _revived(_json(directory / "final.json", dict, notes))
    final = {k: float(v) for k, v in told.items() if "/" in k and _is_number(v)}
    status = DONE if told else UNFINISHED
  samples = directory / "samples.txt"
  text = samples.read_text("utf-8", "replace") if samples.is_file() else ""
  return Run(seed, status, records, final, _records(directory / "depth.jsonl", notes), text)


def _revived(values):
  """Returns the values with the texts "nan" and "inf" as the floats they stand for."""
  return {k: float(v) if v in ("nan", "inf", "-inf") else v for k, v in values.items()}


def _is_number(value) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _records(path, notes):
  try:
    return [record for record in metrics.read(path) if _is_number(record.get("step")) and math.isfinite(record["step"])]
  except ValueError as error:
    notes.append(f"unreadable: {error}")
    return []


def _json(path, kind, notes):
  """Returns what a JSON file holds, or an empty `kind` and a note."""
  try:
    value = json.loads(path.read_text("utf-8"))
    if isinstance(value, kind):
      return value
    why = f"it holds no {'list' if kind is list else 'object'}"
  except (OSError, ValueError, RecursionError) as error:
    why = str(error)[:200]
  notes.append(f"unreadable: {path}: {why}")
  return kind()


def _list(value) -> list:
  return value if isinstance(value, list) else []


def _table(path) -> dict[str, float]:
  found = {}
  for row in csv.DictReader(io.StringIO(path.read_text("utf-8", "replace"))):
    if row.get("quantity") in COUNTED and re.fullmatch(r"\d{1,30}", row.get("value") or ""):
      found[row["quantity"]] = float(row["value"])
  return found


def _missing(arms) -> list[str]:
  """Returns one line per arm that lacks results."""
  notes = []
  for arm in arms:
    lost = {}
    for run in arm.runs:
      if run.status != DONE:
        at = f" at step {run.records[-1]['step']:g}" if run.status == UNFINISHED and run.records else ""
        lost.setdefault(run.status + at, []).append(str(run.seed))
    notes += [f"{arm.name}: seed{'s' * (len(seeds) > 1)} {', '.join(seeds)} {status}" for status, seeds in lost.items()]
    if not arm.runs:
      notes.append(f"{arm.name}: no seeds")
  return notes


def _dates(directory):
  names = ("config.json", "env.json", "metrics.jsonl", "final.json", "diverged.json", "sweep.json", "verdict.json")
  times = [path.stat().st_mtime for depth in ("", "seed_*/", "arms/*/", "arms/*/seed_*/") for name in names
           for path in directory.glob(depth + name)]
  return (min(times), max(times)) if times else None
