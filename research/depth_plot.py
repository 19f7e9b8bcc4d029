"""The figure of depth.jsonl: one panel per diagnostic, one line per evaluation, layers from left to right."""

import pathlib

import numpy as np

PANELS = {
    "residual_variance": "variance of the residual stream",
    "update_norm": "relative update $|x_{l+1} - x_l| \\,/\\, |x_l|$",
    "gradient_norm": "gradient norm",
    "attention_entropy": "attention entropy (nats)",
    "massive_activation": "largest over median |activation|",
    "skip_loss": "loss added by skipping the layer (nats)",
}
SPAN = 30  # largest over smallest value from which an axis is logarithmic


def by_depth(records: list[dict], path: pathlib.Path, *, title: str) -> None:
  """Draws every diagnostic over the layers, later evaluations darker.

  Args:
    records: lines of depth.jsonl, {"step", name: [L]}; at least one.
    path: of the PNG.
    title: of the figure.
  """
  import matplotlib
  matplotlib.use("agg")
  from matplotlib import cm, colors, pyplot as plt

  figure, grid = plt.subplots(2, 3, figsize=(11, 6.2), dpi=144, layout="constrained")
  # Without its palest end, which is hard to see on white.
  shades = colors.ListedColormap(plt.get_cmap("viridis_r")(np.linspace(0.08, 1.0, 256)))
  last = max(record["step"] for record in records)
  scale = colors.Normalize(min(last - 1, *(record["step"] for record in records)), last)
  for axes, (name, label) in zip(grid.flat, PANELS.items()):
    lines_EL = np.asarray([record[name] for record in records], np.float64)
    layers = np.arange(lines_EL.shape[1])
    for values_L, record in zip(lines_EL, records):
      seen = np.isfinite(values_L)
      axes.plot(layers[seen], values_L[seen], "o-", color=shades(scale(record["step"])),
                linewidth=1.4, markersize=3.5)
    finite = lines_EL[np.isfinite(lines_EL)]
    if not finite.size:
      axes.text(0.5, 0.5, "no layer has it", transform=axes.transAxes, ha="center", color="0.5")
      axes.set_yticks([])
    elif finite.min() > 0 and finite.max() > SPAN * finite.min():
      axes.set_yscale("log")
    elif finite.min() < 0:
      axes.axhline(0, linewidth=0.8, color="0.7", zorder=0)
    axes.set_title(label, fontsize=10)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
  for axes in grid[-1]:
    axes.set_xlabel("layer")
  figure.colorbar(cm.ScalarMappable(scale, shades), ax=grid, label="step", aspect=40, shrink=0.9)
  figure.suptitle(title)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)
  plt.close(figure)
