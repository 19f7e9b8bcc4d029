"""What a metric costs: every arm of an experiment at its cost and its metric, where the experiment file asks for it.

    FRONTIER = {"eval/accuracy": ("count/state_bytes",)}

is drawn by research.verify and research.sweep as figures/frontier-<metric>.png, a panel per cost, a marker per arm
with the 95 % interval of its mean over seeds. The staircase joins the arms that no other arm beats at the
same cost or less. The CSV beside it is the table: arm, seeds, metric with interval, every cost.
"""

import math
import pathlib

from research import compare, panels, sweep_plots
from research import config as configs
from research.panels import PRINT

SPAN = 4  # largest over smallest cost beyond which its axis is logarithmic
UNITS = {"count/state_bytes": "bytes per sequence", "time/step_ms": "ms", "decode/ms": "ms"}


def draw(asked, found) -> list[pathlib.Path]:
  """Draws every frontier that the experiment file of a plan asks for; returns the files.

  Args:
    asked: research.plan.Plan.
    found: its research.results.Results.
  """
  wanted = getattr(configs.module_of(asked.spec), "FRONTIER", {})
  paths = []
  for metric, costs in wanted.items():
    paths.append(asked.directory / "figures" / f"frontier-{metric.replace('/', '-')}.png")
    figure(found.values, paths[-1], metric=metric, costs=costs)
  return paths


def staircase(points: dict[str, tuple[float, float]], better: str) -> list[str]:
  """Returns the arms that no other arm beats at the same cost or less, from cheap to dear.

  Args:
    points: arm -> (cost, value).
    better: "lower" or "higher", of the value.
  """
  sign = -1.0 if better == "lower" else 1.0
  kept, best = [], -math.inf
  for arm, (_, value) in sorted(points.items(), key=lambda item: (item[1][0], -sign * item[1][1])):
    if sign * value > best:
      kept.append(arm)
      best = sign * value
  return kept


def figure(values: dict, path: pathlib.Path, *, metric: str, costs: tuple[str, ...]) -> None:
  """Draws one frontier with the CSV of its numbers; an arm without the metric or a cost is left out of that panel.

  Args:
    values: arm -> metric -> seed -> number.
    path: of the PNG.
    metric: what the costs are paid for.
    costs: names of metrics.
  """
  order = list(values)
  means = compare.means({arm: of_arm.get(metric, {}) for arm, of_arm in values.items()})
  paid = {cost: {arm: m.mean for arm, m in compare.means({a: v.get(cost, {}) for a, v in values.items()}).items()}
          for cost in costs}
  made, axes = sweep_plots.new_figure(1.6 + 4.4 * len(costs), max(4.6, 0.8 + 0.18 * len(order)), len(costs))
  for one, cost in zip([axes] if len(costs) == 1 else axes, costs):
    points = {arm: (paid[cost][arm], m.mean) for arm, m in means.items()
              if math.isfinite(m.mean) and math.isfinite(paid[cost][arm])}
    panel(one, points, {arm: m.interval for arm, m in means.items()}, order, compare.direction(metric))
    panels.style(one, PRINT, title=panels.short(f"{metric} against {cost}", 48), y=metric,
                 x=f"{cost} ({UNITS[cost]})" if cost in UNITS else cost)
  _names(made, order)
  rows = [(arm, len(m.values), m.mean, *(m.interval or ("", "")), *(paid[cost][arm] for cost in costs))
          for arm, m in means.items()]
  sweep_plots.save(made, path, ("arm", "seeds", metric, "low", "high", *costs), rows)


def panel(axes, points: dict, intervals: dict, order: list[str], better: str) -> None:
  """Draws one panel on axes: markers with intervals, and the staircase where one side is known to be better."""
  if better:
    steps = [points[arm] for arm in staircase(points, better)]
    axes.step([x for x, _ in steps], [y for _, y in steps], where="post", color=PRINT.soft, linewidth=1, zorder=1)
  for arm, (cost, mean) in points.items():
    look = PRINT.of(order.index(arm))
    axes.plot([cost], [mean], marker=look["marker"], color=look["color"], markersize=7, linestyle="none")
    if intervals.get(arm):
      axes.plot([cost, cost], intervals[arm], color=look["color"], linewidth=1.6)
  paid = [x for x, _ in points.values()]
  if points and max(paid) > SPAN * min(paid) > 0:
    panels.log(axes, "x")


def _names(made, order):
  from matplotlib.lines import Line2D
  looks = [{**PRINT.of(i), "linestyle": "none"} for i in range(len(order))]
  made.legend([Line2D([], [], **look) for look in looks], [panels.plain(panels.short(arm, 28)) for arm in order],
              loc="outside right upper", frameon=False, fontsize=8.5)
