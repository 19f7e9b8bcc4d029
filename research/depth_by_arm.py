"""What an architecture does by depth, arm beside arm: figures/depth-<layers>.png of a plan whose runs keep depth.jsonl.

Four panels of the arms with that many layers: the loss that came of it, and at the last step by layer the variance of
the residual stream, the gradient norm, and the loss added by skipping a layer, what the layer is good for.
"""

import collections
import math
import pathlib

from research import compare, metrics, panels, sweep_plots
from research.panels import PRINT

PANELS = {
    "residual_variance": "Variance of the residual stream",
    "gradient_norm": "Gradient norm",
    "skip_loss": "Loss added by skipping the layer",
}


def draw(asked, found) -> list[pathlib.Path]:
  """Draws a figure for every number of layers that two arms or more of a plan have; returns the files.

  Args:
    asked: research.plan.Plan.
    found: its research.results.Results.
  """
  by_layers = collections.defaultdict(dict)
  for arm in asked.names:
    runs = [last(asked.directory / "arms" / arm / f"seed_{seed}" / "depth.jsonl") for seed in asked.seeds[arm]]
    for layers in {len(run["gradient_norm"]) for run in runs if run}:
      by_layers[layers][arm] = [run for run in runs if run and len(run["gradient_norm"]) == layers]
  paths = []
  for layers, runs in sorted(by_layers.items()):
    if len(runs) > 1:
      losses = {arm: found.values.get(arm, {}).get("eval/loss", {}) for arm in runs}
      paths.append(asked.directory / "figures" / f"depth-{layers}.png")
      figure(runs, losses, paths[-1], layers=layers)
  return paths


def last(path: pathlib.Path) -> dict:
  """Returns the last record of a depth.jsonl, {} if there is none."""
  records = metrics.read(path) if path.is_file() else []
  return records[-1] if records else {}


def figure(runs: dict, losses: dict, path: pathlib.Path, *, layers: int) -> None:
  """Draws one figure with the CSV of its numbers.

  Args:
    runs: arm -> of each seed a record {name: [layers]}.
    losses: arm -> seed -> final loss.
    path: of the PNG.
    layers: of every arm.
  """
  order = list(runs)
  made, grid = sweep_plots.new_figure(10.6, 7.4, 2, rows=2)
  means = compare.means(losses)
  panels.dots(grid[0, 0], [(order.index(arm), arm, list(m.values.values()), m.mean, m.interval)
                           for arm, m in means.items()], PRINT)
  panels.style(grid[0, 0], PRINT, title=f"Loss of {layers} layers", x="nats", below="a dot per seed, a bar for the 95 % interval")
  grid[0, 0].grid(False, axis="y")
  table = [(arm, "loss", "", seed, value) for arm, of_seed in losses.items() for seed, value in of_seed.items()]
  for axes, (name, title) in zip(grid.flat[1:], PANELS.items()):
    lines = {}
    for i, arm in enumerate(order):
      rows = [[(n + 1, float(y)) for n, y in enumerate(run[name]) if math.isfinite(y)] for run in runs[arm]]
      if any(rows):
        lines[i] = panels.line([row for row in rows if row])
        table += [(arm, name, int(x), "mean", float(y)) for x, y in zip(lines[i].x, lines[i].mean)]
    panels.curves(axes, lines, PRINT, marks=True)
    if name == "skip_loss" and lines:  # one layer may be worth a thousand times another, or less than nothing
      axes.set_yscale("symlog", linthresh=1e-2)
      axes.axhline(0, linewidth=0.8, color=PRINT.soft, zorder=0)
    panels.style(axes, PRINT, title=title, x="layer", below="at the last step, from the least to the greatest seed")
  from matplotlib.lines import Line2D
  looks = [Line2D([], [], linewidth=1.7, markersize=4, **PRINT.of(i)) for i in range(len(order))]
  made.legend(looks, [panels.plain(panels.short(arm)) for arm in order], loc="outside lower center",
              ncols=min(6, len(order)), frameon=False, fontsize=9.5)
  sweep_plots.save(made, path, ("arm", "quantity", "layer", "seed", "value"), table)
