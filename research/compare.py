"""The table of a sweep: every arm against one of them, paired over seeds."""

import math

import rich.console
import rich.table

from research import manifest, statistics
from research.errors import ConfigError, nearest, shown

HIGHER = ("accuracy",)  # metrics of which more is better; of all others less is


def rows(results, seeds, metric: str, against: str) -> list[dict]:
  """Returns one record per arm: mean, deviation and, against the other, the gain with its interval.

  Raises:
    ConfigError: no arm has the metric.
  """
  known = {m for found in results.values.values() for m in found}
  if metric not in known:
    raise ConfigError(f"--metric={shown(metric)}: no run has it; {nearest(metric, known)}")
  sign = 1.0 if metric.endswith(HIGHER) else -1.0
  numbers = {arm: results.values[arm].get(metric, {}) for arm in seeds}
  finite = {arm: {s: x for s, x in of_arm.items() if math.isfinite(x)} for arm, of_arm in numbers.items()}
  found = []
  for arm in seeds:
    mine = finite[arm]
    lost = results.missing.get(arm, {}) | {s: f"{metric}={x}" for s, x in numbers[arm].items() if s not in mine}
    one = {"arm": arm, "n": len(mine), "missing": lost, "gain": None}
    if mine:
      one["mean"] = sum(mine.values()) / len(mine)
    pairs = [s for s in seeds[arm] if s in mine and s in finite[against]]
    if arm != against and len(pairs) > 1:
      one["gain"] = statistics.summary([sign * (mine[s] - finite[against][s]) for s in pairs])
    found.append(one)
  compared = [one for one in found if one["gain"]]
  for one, p in zip(compared, statistics.holm([one["gain"].p for one in compared])):
    one["holm"] = p
    # A word about one of several arms has to survive their number as well.
    one["word"] = statistics.better_word(one["gain"].t) if p < 0.05 else "no difference seen"
  return found


def show(plan, results, metric: str, against: str) -> None:
  """Prints the table, and writes it into summary.md of the sweep."""
  found = rows(results, plan.seeds, metric, against)
  lines = [f"| arm | seeds | {metric} | gain over {against} | 95 % interval | effect size | p (Holm) | |",
           "|---|---|---|---|---|---|---|---|"]
  table = rich.table.Table(box=None, pad_edge=False)
  for column in ("arm", "seeds", metric, f"gain over {against}", "95 % interval", "effect size", "p (Holm)", ""):
    table.add_column(column, justify="left" if column in ("arm", "") else "right")
  for one in found:
    cells = _cells(one, against)
    table.add_row(*cells)
    lines.append(f"| {' | '.join(cells)} |")
  console = rich.console.Console(highlight=False, markup=False)
  console.print(table, width=max(console.width, 110))
  notes = [_advice(one, metric) for one in found if one.get("word") == "no difference seen"]
  notes += [f"{one['arm']}: " + ", ".join(f"seed {s} {why}" for s, why in one["missing"].items())
            for one in found if one["missing"]]
  for note in notes:
    print(note)
  print(f"files in {plan.directory}")
  text = "\n".join([f"# {plan.spec}", "", *lines, "", *(f"- {note}" for note in notes), ""])
  manifest.write_atomically(plan.directory / "summary.md", text.encode())


def _cells(one, against):
  mean = f"{one['mean']:.4f}" if "mean" in one else "-"
  if one["arm"] == against or one["gain"] is None:
    return [one["arm"], str(one["n"]), mean, "", "", "", "", "" if one["arm"] != against else "reference"]
  gain = one["gain"]
  return [one["arm"], str(one["n"]), mean, f"{gain.mean:+.4f}", f"[{gain.t.low:+.4f}, {gain.t.high:+.4f}]",
          f"{gain.effect:+.2f}", f"{one['holm']:.2g}", one["word"]]


def _advice(one, metric):
  gain = one["gain"]
  return (f"{one['arm']}: {statistics.advice(gain, gain.mean, '')} of {metric}")
