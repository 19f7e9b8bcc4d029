"""Figures of routing.jsonl: who gets the tokens over steps, and a text on the depth that each of its bytes got.

routing.png     load by expert over steps, a heat map for each of at most 4 layers; max violation, entropy and
                dropped choices by step; which expert gets which class of bytes, first and last layer, last step
recursions.png  the first row of the validation batch, each byte on a colour for how often layers ran on it
"""

import math
import pathlib

import numpy as np

from research.routing_profile import CLASSES

# Dims: S evaluations, E experts, C classes of bytes.

CURVES = {
    "max_violation": "max violation (0 = even)",
    "entropy": "entropy of the gates (nats)",
    "dropped": "dropped share of choices",
}
LAYERS = 4  # with a heat map of their own
STEPS = 6  # at most so many are written below a heat map
COLUMNS, LINES = 88, 36  # of text in recursions.png
LINE_BREAK = "\u21b5"


def figures(records: list[dict], folder: pathlib.Path, *, title: str) -> list[pathlib.Path]:
  """Draws what the records have, and returns the files; none for no records.

  Args:
    records: lines of routing.jsonl: research/routing_profile.py.
    folder: of the PNGs.
    title: of the figures.
  """
  drawn = []
  if any("layers" in record for record in records):
    drawn.append(by_expert(records, folder / "routing.png", title=title))
  if records and "applied" in records[-1] and "bytes" in records[-1]:
    drawn.append(by_byte(records[-1], folder / "recursions.png", title=title))
  return drawn


def chosen(names: list[str], most: int = LAYERS) -> list[int]:
  """Returns the places of at most so many of the layers, evenly spread, with the first and the last."""
  return sorted({round(i) for i in np.linspace(0, len(names) - 1, min(most, len(names)))})


def cells(data: bytes, columns: int = COLUMNS) -> list[tuple[int, int, str]]:
  """Returns (line, column, sign) of every byte of a text that breaks after its own line breaks and at `columns`."""
  found, line, column = [], 0, 0
  for byte in data:
    sign = LINE_BREAK if byte == 10 else chr(byte) if 32 <= byte < 127 else "\u00b7"
    found.append((line, column, sign))
    column += 1
    if byte == 10 or column == columns:
      line, column = line + 1, 0
  return found


def by_expert(records: list[dict], path: pathlib.Path, *, title: str) -> pathlib.Path:
  """Draws loads, violation, entropy, drops and specialisation; returns `path`."""
  import matplotlib
  matplotlib.use("agg")
  from matplotlib import cm, colors, pyplot as plt

  records = [record for record in records if "layers" in record]
  names, last, steps = records[-1]["layers"], records[-1], [record["step"] for record in records]
  heat = chosen(names)
  ends = sorted({heat[0], heat[-1]}) if "classes" in last else []
  curves = dict(CURVES)
  if not any(share > 0 for record in records for share in record["dropped"]):
    del curves["dropped"]
  # As multiples of an even share, so that layers of few and of many experts have one scale.
  loads = [np.asarray([record["load"][i] for record in records], np.float64).T * len(last["load"][i]) for i in heat]
  classes = [np.asarray(last["classes"][i], np.float64) * len(last["load"][i]) for i in ends]
  top = max(2.0, *(np.nanmax(values) for values in loads + classes))
  shades = cm.ScalarMappable(colors.TwoSlopeNorm(1.0, 0.0, top), plt.get_cmap("RdBu_r").with_extremes(bad="0.8"))

  figure = plt.figure(figsize=(13, 7), dpi=144, layout="constrained")
  above, below = figure.subfigures(2, 1)
  axes = above.subplots(1, len(heat), squeeze=False)[0]
  for one, i, load_ES in zip(axes, heat, loads):
    _heat(one, load_ES, shades, f"load, layer {names[i]}")
    # The last step is always named, and the others at equal distances from it.
    ticks = range(len(steps) - 1, -1, -math.ceil(len(steps) / STEPS))
    one.set_xticks(ticks, [f"{steps[tick]}" for tick in ticks])
    one.set_xlabel("step")
    _whole(one.yaxis)
  axes[0].set_ylabel("expert")
  above.colorbar(shades, ax=axes, label="load over an even load (1 = even)")

  axes = below.subplots(1, len(curves) + len(ends))
  for one, (key, label) in zip(axes, curves.items()):
    _curves(one, [record[key] for record in records], steps, names, heat)
    one.set_title(label, fontsize=10)
  below.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=LAYERS, frameon=False, fontsize=9)
  for one, i, map_CE in zip(axes[len(curves):], ends, classes):
    _heat(one, map_CE, shades, f"bytes, layer {names[i]}")
    one.set_yticks(range(len(CLASSES)), CLASSES if i == ends[0] else [])
    one.set_xlabel("expert")
    _whole(one.xaxis)
  if ends:
    below.colorbar(shades, ax=axes[len(curves):], label=f"over an even share, step {last['step']} (grey: none)")
  figure.suptitle(title)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)
  plt.close(figure)
  return path


def _heat(axes, values, shades, title):
  axes.imshow(values, cmap=shades.cmap, norm=shades.norm, aspect="auto", interpolation="nearest")
  axes.set_title(title, fontsize=10)


def _curves(axes, rows, steps, names, named):
  """Draws a line per layer, deeper ones paler; the layers that have a heat map have a name too."""
  from matplotlib import pyplot as plt
  tones = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(names)))
  for i, name in enumerate(names):
    axes.plot(steps, [row[i] for row in rows], "o-", color=tones[i], linewidth=1.4, markersize=3.5,
              label=f"layer {name}" if i in named else None)
  axes.set_xlabel("step")
  axes.set_ylim(0, max(0.1, axes.get_ylim()[1]))
  if len(steps) > 1:
    axes.locator_params(axis="x", nbins=5, integer=True)
  else:
    axes.set_xticks(steps)
  axes.spines[["top", "right"]].set_visible(False)


def _whole(axis):
  axis.get_major_locator().set_params(integer=True)


def by_byte(record: dict, path: pathlib.Path, *, title: str) -> pathlib.Path:
  """Draws the text of a record on the depth of its bytes; returns `path`."""
  import matplotlib
  matplotlib.use("agg")
  from matplotlib import cm, colors, pyplot as plt

  applied_T = np.asarray(record["applied"], int)
  data = bytes(record["bytes"])
  placed = [cell for cell in cells(data) if cell[0] < LINES]
  height = 1 + placed[-1][0]
  depth = np.full((height, COLUMNS), np.nan)
  for (line, column, _), number in zip(placed, applied_T):
    depth[line, column] = number
  levels = np.arange(applied_T.min(), applied_T.max() + 2) - 0.5
  # Pale to middle blue: black letters stay legible on all of it.
  shades = colors.ListedColormap(plt.get_cmap("YlGnBu")(np.linspace(0.05, 0.62, len(levels) - 1)))
  scale = colors.BoundaryNorm(levels, shades.N)
  figure, axes = plt.subplots(figsize=(10, 1.5 + 0.21 * height), dpi=144, layout="constrained")
  axes.imshow(depth, cmap=shades, norm=scale, aspect="auto", interpolation="nearest")
  for line, column, sign in placed:
    axes.text(column, line, sign.replace("$", r"\$"), family="monospace", fontsize=9.5, ha="center", va="center")
  axes.set_xticks([])
  axes.set_yticks([])
  axes.spines[:].set_visible(False)
  left = f", the first {len(placed)} of {len(data)} bytes" if len(placed) < len(data) else ""
  axes.set_title(f"{title}: how often layers ran on each byte, step {record['step']}{left}", fontsize=11)
  bar = figure.colorbar(cm.ScalarMappable(scale, shades), ax=axes, orientation="horizontal", aspect=60, shrink=0.5,
                        label="layers applied", ticks=(levels[:-1] + 0.5)[::max(1, len(levels) // 16)])
  bar.ax.tick_params(length=0)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)
  plt.close(figure)
  return path
