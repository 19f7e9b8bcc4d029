"""The table of a sweep: every arm against one of them, paired over seeds."""

import math
import sys

import rich.console
import rich.table

from research import compare, manifest, statistics
from research.errors import ConfigError, nearest, shown

WIDTH = 130  # of the table where there is no terminal


def show(plan, results, metric: str, against: str) -> None:
  """Prints the table, and writes it into summary.md of the sweep.

  Raises:
    ConfigError: no arm has the metric.
  """
  known = {m for found in results.values.values() for m in found}
  if metric not in known:
    raise ConfigError(f"--metric={shown(metric)}: no run has it; {nearest(metric, known)}")
  values = {arm: results.values[arm].get(metric, {}) for arm in plan.names}
  heads, rows, notes = table(values, results.missing, metric, against)
  grid = rich.table.Table(box=None, pad_edge=False)
  for head in heads:
    grid.add_column(head, no_wrap=True, justify="left" if head in ("arm", "") else "right")
  for row in rows:
    grid.add_row(*row)
  console = rich.console.Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
  console.print(grid)
  for note in notes:
    print(note)
  print(f"files in {plan.directory}")
  lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
  text = "\n".join([f"# {plan.spec}", "", *lines, "", *(f"- {note}" for note in notes), ""])
  manifest.write_atomically(plan.directory / "summary.md", text.encode())


def table(values, missing, metric: str, against: str) -> tuple[list[str], list[list[str]], list[str]]:
  """Returns (heads, one row of cells per arm, notes) of one metric.

  Args:
    values: arm -> seed -> number.
    missing: arm -> seed -> why it has none.
    metric: its name.
    against: what the arms are compared with.
  """
  means = compare.means(values)
  differences = compare.differences(values, against, compare.direction(metric))
  heads = ["arm", "seeds", metric, f"minus {against}", "95 % interval", "effect size", "p (Holm)", ""]
  rows, notes = [], []
  for arm, mean in means.items():
    row = [arm, str(len(mean.values)), "-" if math.isnan(mean.mean) else f"{mean.mean:.4f}"]
    lost = missing.get(arm, {}) | {s: f"{metric}={x}" for s, x in values[arm].items() if s not in mean.values}
    if lost:
      notes.append(f"{arm}: " + ", ".join(f"seed {s} {why}" for s, why in sorted(lost.items())))
    if arm == against:
      rows.append([*row, "", "", "", "", "reference"])
      continue
    found = differences[arm]
    if found.interval is None:
      rows.append([*row, "-" if math.isnan(found.mean) else f"{found.mean:+.4f}", "", "", "", found.word])
      continue
    rows.append([*row, f"{found.mean:+.4f}", f"[{found.interval[0]:+.4f}, {found.interval[1]:+.4f}]",
                 f"{found.summary.effect:+.2f}", f"{found.p:.2g}", found.word])
    if found.word == "no difference seen":
      notes.append(f"{arm}: {statistics.advice(found.summary, found.mean, '')} of {metric}")
  return heads, rows, notes
