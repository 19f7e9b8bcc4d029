"""Figures of what experiments in context learning leave in arrays.npz, drawn by research.verify and research.sweep.

    figures/in-context-risk-<arm>.png     risk by position of the decoder, between those of algorithms
    figures/in-context-layers-<arm>.png   likeness of layers to k Newton iterations and k gradient steps

An arm is drawn if its runs left the arrays of research/in_context_layers.py. Both figures are functions of these
arrays alone, and write their numbers beside them as CSV.
"""

import pathlib

import numpy as np

from research import arrays, panels, sweep_plots
from research.panels import PRINT

# Dims: S seeds, R layers and the decoder, K numbers of steps.

ALGORITHMS = ("ridge", "least_squares", "averaging", "neighbours")
TITLES = {"newton": "Newton iterations", "gd": "gradient steps"}


def draw(asked) -> list[pathlib.Path]:
  """Draws the figures of every arm of a plan that has them; returns the files."""
  paths = []
  for arm in asked.names:
    found = [arrays.read(asked.directory / "arms" / arm / f"seed_{seed}") for seed in asked.seeds[arm]]
    for key, kind, figure in (("position/decoder", "risk", risks), ("sime/newton", "layers", likeness)):
      of_seeds = [one for one in found if key in one]
      if of_seeds:
        paths.append(asked.directory / "figures" / f"in-context-{kind}-{arm}.png")
        figure(of_seeds, paths[-1])
  return paths


def risks(found: list[dict], path: pathlib.Path) -> None:
  """Draws risk by position: a band of two standard errors of the prompts around each, the mean over seeds.

  Args:
    found: of each seed, arrays with "position/<name>" and "position_error/<name>".
    path: of the PNG.
  """
  names = ["decoder", *(name for name in ALGORITHMS if f"position/{name}" in found[0])]
  made, axes = sweep_plots.new_figure(6.8, 4.4)
  rows, shown = [], []
  for i, name in enumerate(names):
    mean_N = np.mean([one[f"position/{name}"] for one in found], axis=0)
    error_N = np.mean([one[f"position_error/{name}"] for one in found], axis=0)
    known = np.arange(len(mean_N))
    rows += [(name, int(at), float(mean), float(error)) for at, mean, error in zip(known, mean_N, error_N)]
    # An infinite mean is a gap; a risk of 0 has no place on a logarithmic axis.
    seen = np.isfinite(mean_N) & (mean_N > 1e-6)
    mean_N, low_N, high_N = (np.where(seen, y, np.nan) for y in (
        mean_N, np.maximum(mean_N - 2 * error_N, 0.5 * mean_N), mean_N + 2 * error_N))
    look = PRINT.of(i)
    axes.fill_between(known, low_N, high_N, color=look["color"], alpha=0.18, linewidth=0)
    axes.plot(known, mean_N, color=look["color"], marker=look["marker"], linestyle=look["linestyle"], markersize=4,
              linewidth=2.2 if name == "decoder" else 1.4, label=panels.plain(name.replace("_", " ")))
    shown += mean_N[seen].tolist()
  panels.style(axes, PRINT, title="Risk by position", x="pairs seen", y="squared error to f",
               below="a gap is an infinite mean" if len(shown) < len(rows) else "")
  if shown:
    panels.log(axes, "y")
  axes.locator_params(axis="x", integer=True)
  axes.legend(frameon=False, fontsize=8.5)
  sweep_plots.save(made, path, ("algorithm", "pairs", "risk", "standard error"), rows)


def likeness(found: list[dict], path: pathlib.Path) -> None:
  """Draws cosines of residuals as heat maps, layer by number of steps, with a box around the best of each layer.

  Args:
    found: of each seed, arrays with "sime/<name>" [R, K] and "grid/<name>" [K].
    path: of the PNG.
  """
  from matplotlib.patches import Rectangle
  made, both = sweep_plots.new_figure(11.0, 1.8 + 0.5 * len(found[0]["sime/newton"]), 2)
  rows = []
  for axes, (name, title) in zip(both, TITLES.items()):
    alike_RK = np.mean([one[f"sime/{name}"] for one in found], axis=0)
    grid_K = found[0][f"grid/{name}"]
    labels = [*(f"layer {i + 1}" for i in range(len(alike_RK) - 1)), "decoder"]
    image = axes.imshow(alike_RK, aspect="auto", cmap="viridis", vmax=1.0, origin="lower")
    for at, best in enumerate(np.argmax(alike_RK, axis=1)):
      axes.add_patch(Rectangle((best - 0.5, at - 0.5), 1, 1, fill=False, edgecolor="#d55e00", linewidth=2.2))
    panels.style(axes, PRINT, title=f"Likeness to {title}", x=title)
    axes.grid(False)
    axes.set_xticks(range(len(grid_K)), [f"{k:g}" for k in grid_K])
    axes.set_yticks(range(len(labels)), labels)
    made.colorbar(image, ax=axes, label="cosine of residuals")
    rows += [(name, label, float(k), float(value)) for label, of_layer in zip(labels, alike_RK)
             for k, value in zip(grid_K, of_layer)]
  sweep_plots.save(made, path, ("algorithm", "layer", "steps", "cosine"), rows)
