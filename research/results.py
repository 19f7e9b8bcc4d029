"""What the runs of a sweep came to, read from their files: arm -> metric -> seed -> number."""

import csv
import io
import json
import pathlib
import statistics
from typing import NamedTuple

from research import metrics
from research.errors import ConfigError, nearest, shown

# Row of model_table.csv -> metric.
COUNTED = {
    "parameters": "count/parameters",
    "parameters without embeddings": "count/inner_parameters",
    "decoding state": "count/state_bytes",
    "forward": "count/forward_flops",
    "forward and backward": "count/flops",
    "tokens per step": "count/tokens_per_step",
    "steps": "count/steps",
}
MEASURED = ("time/step_ms", "throughput/tokens_per_s", "run/diverged", "run/skipped")


class Results(NamedTuple):
  """What is known of some arms under some seeds.

  Attributes:
    values: arm -> metric -> seed -> number.
    missing: arm -> seeds that have no number because they diverged, failed or were not run.
  """

  values: dict[str, dict[str, dict[int, float]]]
  missing: dict[str, dict[int, str]]

  def of(self, arm: str, metric: str, seeds) -> list[float]:
    """Returns one number per seed.

    Raises:
      ConfigError: no run of the arm has that metric; names the nearest one.
    """
    known = self.values.get(arm, {})
    if metric not in known:
      raise ConfigError(f"metric {shown(metric)}: arm {arm} has no such number; {nearest(metric, known)}")
    without = [seed for seed in seeds if seed not in known[metric]]
    if without:
      raise ConfigError(f"metric {shown(metric)}: arm {arm} has it, but not under seed {without[0]}, which was run "
                        "before it was measured; --fresh runs all anew.")
    return [known[metric][seed] for seed in seeds]

  def paired(self, arms, seeds) -> list[int]:
    """Returns the seeds of which every one of these arms has a result."""
    return [seed for seed in seeds if all(seed not in self.missing.get(arm, {}) for arm in arms)]


def finished(directory: pathlib.Path, seed: int) -> bool:
  """Whether there is nothing left to do for a seed of an arm."""
  out = directory / f"seed_{seed}"
  return (out / "final.json").is_file() or (out / "diverged.json").is_file()


def read(directory: pathlib.Path, seeds: dict[str, tuple[int, ...]]) -> Results:
  """Returns what directory/arms/<arm>/seed_<k> hold, for the given seeds of each arm."""
  values, missing = {}, {}
  for arm, of_arm in seeds.items():
    at = directory / "arms" / arm
    table = _table(at / "model_table.csv")
    found = values.setdefault(arm, {})
    for seed in of_arm:
      numbers = _of_run(at / f"seed_{seed}")
      if "run/diverged" not in numbers or numbers["run/diverged"]:
        missing.setdefault(arm, {})[seed] = "diverged" if numbers else "not run"
      for metric, value in (numbers | (table if numbers else {})).items():
        found.setdefault(metric, {})[seed] = value
  return Results(values, missing)


def _of_run(run: pathlib.Path) -> dict[str, float]:
  if (run / "diverged.json").is_file():
    return {"run/diverged": 1.0}
  if not (run / "final.json").is_file():
    return {}
  final = json.loads((run / "final.json").read_text())
  numbers = {k: float(v) for k, v in final.items() if isinstance(v, int | float) and "/" in k}
  timed = [r for r in metrics.read(run / "metrics.jsonl") if r.get("tokens_per_s")]
  if timed:
    numbers["time/step_ms"] = 1e3 / statistics.median(r["tokens_per_s"] / r["tokens"] * r["step"] for r in timed)
    numbers["throughput/tokens_per_s"] = statistics.median(r["tokens_per_s"] for r in timed)
  return numbers | {"run/diverged": 0.0, "run/skipped": float(final["skipped"])}


def _table(path: pathlib.Path) -> dict[str, float]:
  if not path.is_file():
    return {}
  rows = {row["quantity"]: row["value"] for row in csv.DictReader(io.StringIO(path.read_text()))}
  return {metric: float(rows[name]) for name, metric in COUNTED.items() if name in rows}


def as_csv(results: Results) -> str:
  """Returns the long form: one line per arm, seed and metric."""
  text = io.StringIO()
  write = csv.writer(text, lineterminator="\n")
  write.writerow(("arm", "seed", "metric", "value"))
  write.writerows((arm, seed, metric, repr(value)) for arm, found in results.values.items()
                  for metric, of_seed in sorted(found.items()) for seed, value in sorted(of_seed.items()))
  return text.getvalue()


def tables(directory: pathlib.Path, arms) -> str:
  """Returns the model tables of all arms as one CSV: a row per arm."""
  found = {arm: _table(directory / "arms" / arm / "model_table.csv") for arm in arms}
  names = [name for name in COUNTED.values() if any(name in table for table in found.values())]
  text = io.StringIO()
  write = csv.writer(text, lineterminator="\n")
  write.writerow(("arm", *(name.partition("/")[2] for name in names)))
  write.writerows((arm, *(f"{table[name]:.0f}" if name in table else "" for name in names))
                  for arm, table in found.items())
  return text.getvalue()
