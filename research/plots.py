"""Figures of one run. Each PNG has its numbers beside it, in the run's metrics."""

import pathlib


def loss_curve(records: list[dict], path: pathlib.Path, *, title: str, unit: str,
               lines: dict[str, float]) -> None:
  """Draws training and validation loss over steps, and baselines as dashed lines.

  Args:
    records: the run's metric records.
    path: of the PNG.
    title: of the figure.
    unit: of the loss.
    lines: label -> height.
  """
  import matplotlib
  matplotlib.use("agg")
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(figsize=(7, 4.2), dpi=144, layout="constrained")
  for key, label, style in (("loss", "training", "-"), ("eval/loss", "validation", "o-")):
    points = [(r["step"], r[key]) for r in records if isinstance(r.get(key), float)]
    if points:
      axes.plot(*zip(*points), style, label=label, linewidth=1.4, markersize=4,
                alpha=0.55 if key == "loss" else 1.0)
  for (label, height), color in zip(lines.items(), ("0.35", "0.6", "0.75")):
    axes.axhline(height, linestyle="--", linewidth=1, color=color)
    axes.annotate(f"{label} {height:.2f}", (1, height), xycoords=("axes fraction", "data"),
                  xytext=(-4, 3), textcoords="offset points", ha="right", fontsize=8, color=color)
  axes.set(title=title, xlabel="step", ylabel=f"loss ({unit})")
  axes.spines[["top", "right"]].set_visible(False)
  if axes.get_legend_handles_labels()[0]:
    axes.legend(frameon=False)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)
  plt.close(figure)
