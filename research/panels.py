"""Panels of figures, drawn on matplotlib axes: curves with bands, dots per seed with means, profiles, claims.

Every function draws on axes that it is given, in colours of a `Theme`: the PNG files of research/sweep_plots.py and
the SVG of a report show the same panels. An arm is told by colour, marker and dash, so that no two of a
sweep look alike to anybody, in print either.
"""

import math
from typing import NamedTuple

import numpy as np

MARKERS = "osD^vPX*"
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
LOG = 20  # a range beyond this factor is drawn on a logarithmic axis
POINTS = 300  # per line; more are averaged in buckets


class Theme(NamedTuple):
  """Colours, as matplotlib takes them.

  Attributes:
    ink: of text and axes.
    soft: of labels and ticks.
    grid: of grid lines.
    paper: behind all.
    arms: of arms in order; they repeat with other markers.
  """

  ink: str
  soft: str
  grid: str
  paper: str
  arms: tuple[str, ...]

  def of(self, i: int) -> dict:
    """Returns colour, marker and dash of the i-th arm."""
    turn = i // len(self.arms)
    return {"color": self.arms[i % len(self.arms)], "marker": MARKERS[(i + turn) % len(MARKERS)],
            "linestyle": DASHES[turn % len(DASHES)]}


# Okabe and Ito's eight, darkened until each has a contrast of 3 to 1 with white.
PRINT = Theme("#1b1f24", "#57606a", "#e3e6ea", "#ffffff",
              ("#0072b2", "#d55e00", "#00805f", "#b3508c", "#b07d00", "#2f8fc7", "#5f4bb6", "#4a4f57"))


class Line(NamedTuple):
  """A mean over seeds, and how far the seeds lie apart; rows of equal length."""

  x: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray
  seeds: int


def line(series: list[list[tuple[float, float]]]) -> Line | None:
  """Returns mean, least and greatest over seeds, at every x where all seeds that came so far have a number.

  Args:
    series: of each seed, its (x, y) in order. Numbers that are not finite end up as gaps.
  """
  known = [dict(points) for points in series if points]
  if not known:
    return None
  xs = sorted(set().union(*known))
  last = [max(points) for points in known]
  # A seed that stopped early, because it diverged or still runs, must not cut the others short.
  rows = [[p[x] for p, end in zip(known, last) if end >= x and x in p] for x in xs
          if all(x in p for p, end in zip(known, last) if end >= x)]
  xs = [x for x in xs if all(x in p for p, end in zip(known, last) if end >= x)]
  y = [np.asarray(row, np.float64) for row in rows]
  rows_X3 = np.asarray([(row.mean(), row.min(), row.max()) for row in y])
  x, size = np.asarray(xs, np.float64), -(-len(xs) // POINTS)
  starts = np.arange(0, len(x), size)
  count = np.diff([*starts, len(x)])
  with np.errstate(invalid="ignore"):
    return Line(np.add.reduceat(x, starts) / count, np.add.reduceat(rows_X3[:, 0], starts) / count,
                np.minimum.reduceat(rows_X3[:, 1], starts), np.maximum.reduceat(rows_X3[:, 2], starts), len(known))


def plain(text) -> str:
  """Returns text that matplotlib draws as it is: no mathematics, nothing its font lacks."""
  known = (c if c.isprintable() and (ord(c) < 0x250 or c == "\u2026") else "?" for c in str(text))
  return "".join(known).replace("$", r"\$")


def short(text: str, size: int = 24) -> str:
  """Returns the text with its middle left out where it is too long."""
  return text if len(text) <= size else f"{text[:size // 2 - 1]}\u2026{text[-(size // 2):]}"


def style(axes, theme: Theme, *, title="", below="", x="", y="") -> None:
  """Gives axes the look of all panels, a title with a line of small print below it, and names of x and y."""
  axes.set_facecolor("none")
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["bottom", "left"]].set_color(theme.soft)
  axes.tick_params(which="both", colors=theme.soft, labelsize=9.5, length=3)
  axes.grid(True, color=theme.grid, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.set_title(plain(title), loc="left", fontsize=11, color=theme.ink, fontweight="bold",
                 pad=20 if below else 6)
  axes.annotate(plain(below), (0, 1), xycoords="axes fraction", xytext=(0, 6), textcoords="offset points",
                fontsize=9, color=theme.soft)
  axes.set_xlabel(plain(x), color=theme.soft, fontsize=9.5)
  axes.set_ylabel(plain(y), color=theme.soft, fontsize=9.5)


def curves(axes, lines: dict[int, Line], theme: Theme, *, marks=False) -> None:
  """Draws lines with bands; logarithmic axes where the numbers ask for them.

  Args:
    axes: of matplotlib.
    lines: index of the arm -> line.
    theme: of colours.
    marks: whether to mark the points, as fits few of them.
  """
  for i, one in lines.items():
    look = theme.of(i)
    if one.seeds > 1:
      axes.fill_between(one.x, one.low, one.high, color=look["color"], alpha=0.18, linewidth=0)
    axes.plot(one.x, one.mean, color=look["color"], linestyle=look["linestyle"], linewidth=1.7,
              marker=look["marker"] if marks and len(one.x) < 40 else None, markersize=4)
  axes.locator_params(axis="x", integer=True)  # steps, tokens and layers are counted
  if lines and wants_log(np.concatenate([one.mean for one in lines.values()])):
    log(axes, "y")
  if lines and all(_early(one) for one in lines.values()):
    log(axes, "x")


def log(axes, which: str) -> None:
  """Makes the x or y axis, with its data on it, logarithmic; its ticks are written as plain numbers."""
  from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
  axes.set(**{f"{which}scale": "log"})
  axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
  low, high = {"x": axes.dataLim.intervalx, "y": axes.dataLim.intervaly}[which]
  span = high / low if 0 < low < high < math.inf else 1.0
  axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if span < 10 else (1, 2, 5) if span < 200 else (1,)))
  axis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
  axis.set_minor_formatter(NullFormatter())


def number(x: float) -> str:
  """Returns a tick as plain digits, thousands as k and millions as M: 0.05, 700, 20k."""
  for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(x) >= max(size, 1e4):
      return f"{x / size:g}{letter}"
  return f"{x:g}"


def wants_log(values) -> bool:
  """Whether numbers are positive and span more than a factor of LOG, the odd one apart."""
  values = np.asarray(values)[np.isfinite(values)]
  if not values.size or values.min() <= 0:
    return False
  low, high = np.percentile(values, (2, 98))
  return high > LOG * low


def _early(one):
  """Whether three quarters of what a curve does happens in the first twentieth of its axis."""
  if len(one.x) < 40 or one.x[0] <= 0 or one.x[-1] < 50 * one.x[0] or not np.isfinite(one.mean).all():
    return False
  path = np.abs(np.diff(one.mean)).cumsum()
  whole = np.ptp(one.mean)
  first = np.ptp(one.mean[one.x <= one.x[-1] / 20])
  return bool(path[-1] > 0 and first > 0.75 * whole)


def dots(axes, rows, theme: Theme, *, zero=False) -> None:
  """Draws a row per arm: a dot per seed, the mean as a bar, its interval as a line.

  Args:
    axes: of matplotlib.
    rows: (index of the arm, its name, numbers of the seeds, mean, interval or None), from top to bottom.
    theme: of colours.
    zero: whether zero is marked, as for differences.
  """
  for at, (i, _, values, mean, interval) in enumerate(rows):
    look = theme.of(i)
    spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(len(values))
    axes.plot(values, at + 0.05 + spread, linestyle="none", marker=look["marker"], markersize=5,
              color=look["color"], alpha=0.8, markeredgewidth=0)
    if interval is not None:
      axes.plot(interval, [at - 0.3] * 2, color=look["color"], linewidth=2.2, solid_capstyle="butt")
    if math.isfinite(mean):
      axes.plot([mean], [at - 0.3], marker="|", markersize=11, markeredgewidth=2.6, color=look["color"])
  if zero:
    axes.axvline(0, color=theme.ink, linewidth=1)
  axes.set_yticks(range(len(rows)), [plain(short(name)) for _, name, *_ in rows])
  axes.set_ylim(len(rows) - 0.4, -0.7)
  axes.grid(False, axis="y")
  axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
  axes.locator_params(axis="x", nbins=5)
