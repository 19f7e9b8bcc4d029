"""What a metric costs: every arm of an experiment at its cost and its metric, where the experiment file asks for it.

    FRONTIER = {"eval/accuracy": ("count/state_bytes",)}

is drawn by research.verify and research.sweep as figures/frontier-<metric>.png: of few arms a panel per cost, with a
marker per arm, the 95 % interval of its mean over seeds, and a staircase that joins the arms that no other arm beats
at the same cost or less; of many arms a row each, from best to worst, in which those markers are full. A cost of
which more is wanted, as tokens per second, falls from left to right. The CSV beside it is the table: arm, seeds,
metric with interval, every cost.
"""

import math
import pathlib

from research import compare, panels, sweep_plots
from research import config as configs
from research.panels import PRINT

SPAN = 4  # largest over smallest cost beyond which its axis is logarithmic
MANY = 16  # arms, above which nobody finds a marker in a legend
UNITS = {"count/state_bytes": "bytes per sequence", "time/step_ms": "ms", "throughput/tokens_per_s": "per second of training",
         "decode/ms": "ms per token"}


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
  points = {cost: {arm: (paid[cost][arm], m.mean) for arm, m in means.items()
                   if math.isfinite(m.mean) and math.isfinite(paid[cost][arm])} for cost in costs}
  made = (_panels if len(order) <= MANY else rows)(order, means, points, metric)
  lines = [(arm, len(m.values), m.mean, *(m.interval or ("", "")), *(paid[cost][arm] for cost in costs))
           for arm, m in means.items()]
  sweep_plots.save(made, path, ("arm", "seeds", metric, "low", "high", *costs), lines)


def _panels(order, means, points, metric):
  """Returns the figure of few arms: a panel per cost."""
  made, axes = sweep_plots.new_figure(1.6 + 4.4 * len(points), 4.6, len(points))
  for one, (cost, of_arm) in zip([axes] if len(points) == 1 else axes, points.items()):
    panel(one, of_arm, {arm: m.interval for arm, m in means.items()}, order, compare.direction(metric), falling(cost))
    panels.style(one, PRINT, title=panels.short(f"{metric} against {cost}", 48), y=metric, x=_named(cost))
  _names(made, order)
  return made


def rows(order, means, points, metric):
  """Returns the figure of many arms: a row per arm, first the metric and then every cost."""
  better = compare.direction(metric)
  sign = -1.0 if better == "higher" else 1.0
  finite = [arm for arm in order if math.isfinite(means[arm].mean)]
  ranked = sorted(finite, key=lambda arm: sign * means[arm].mean) if better else finite
  made, axes = sweep_plots.new_figure(2.2 + 2.9 * (1 + len(points)), 1.2 + 0.19 * len(ranked), 1 + len(points))
  for at, arm in enumerate(ranked):
    axes[0].plot([means[arm].mean], [at], "o", color=PRINT.arms[0], markersize=5)
    if means[arm].interval:
      axes[0].plot(means[arm].interval, [at, at], color=PRINT.arms[0], linewidth=1.6)
  panels.style(axes[0], PRINT, title=metric, x="mean and 95 % interval")
  for i, (cost, of_arm) in enumerate(points.items(), 1):
    kept = staircase(_dear(of_arm, falling(cost)), better) if better else ()
    for at, arm in enumerate(ranked):
      if arm in of_arm:
        axes[i].plot([of_arm[arm][0]], [at], "o", color=PRINT.arms[i], markersize=5,
                     markerfacecolor=PRINT.arms[i] if arm in kept else PRINT.paper)
    _costs(axes[i], of_arm, falling(cost))
    panels.style(axes[i], PRINT, title=cost, x=UNITS.get(cost, ""))
  for i, one in enumerate(axes):
    one.set_ylim(len(ranked) - 0.4, -0.6)
    one.set_yticks(range(len(ranked)), [panels.plain(panels.short(arm, 28)) for arm in ranked] if i == 0 else [])
    one.set_yticks(range(len(ranked)), minor=True)
    one.grid(True, axis="y", which="both", color=PRINT.grid, linewidth=0.6)
    one.tick_params(axis="y", which="both", length=0, labelsize=8.5, labelcolor=PRINT.ink)
  made.supxlabel("full: no other arm is better at this cost or less", x=0.99, ha="right", fontsize=9, color=PRINT.soft)
  return made


def falling(cost: str) -> bool:
  """Whether more of a cost is wanted, so that its axis falls from left to right."""
  return compare.direction(cost) == "higher"


def _dear(points, falls):
  """The points with costs that rise as they are less wanted."""
  return {arm: (-x if falls else x, y) for arm, (x, y) in points.items()}


def _named(cost):
  return f"{cost} ({UNITS[cost]})" if cost in UNITS else cost


def panel(axes, points: dict, intervals: dict, order: list[str], better: str, falls: bool = False) -> None:
  """Draws one panel on axes: markers with intervals, and the staircase where one side is known to be better.

  Args:
    axes: of matplotlib.
    points: arm -> (cost, value).
    intervals: arm -> (low, high) of the value, or None.
    order: of the arms, which gives them their looks.
    better: "lower", "higher" or "", of the value.
    falls: whether the cost falls from left to right.
  """
  if better:
    steps = [points[arm] for arm in staircase(_dear(points, falls), better)]
    axes.step([x for x, _ in steps], [y for _, y in steps], where="post", color=PRINT.soft, linewidth=1, zorder=1)
  for arm, (cost, mean) in points.items():
    look = PRINT.of(order.index(arm))
    axes.plot([cost], [mean], marker=look["marker"], color=look["color"], markersize=7, linestyle="none")
    if intervals.get(arm):
      axes.plot([cost, cost], intervals[arm], color=look["color"], linewidth=1.6)
  _costs(axes, points, falls)


def _costs(axes, points, falls):
  """Gives the x axis its scale and its direction."""
  paid = [x for x, _ in points.values()]
  if points and max(paid) > SPAN * min(paid) > 0:
    panels.log(axes, "x")
  else:
    axes.locator_params(axis="x", nbins=5)
  if falls:
    axes.invert_xaxis()


def _names(made, order):
  from matplotlib.lines import Line2D
  looks = [{**PRINT.of(i), "linestyle": "none"} for i in range(len(order))]
  made.legend([Line2D([], [], **look) for look in looks], [panels.plain(panels.short(arm, 28)) for arm in order],
              loc="outside right upper", frameon=False, fontsize=8.5)
