"""Figures of sweeps and claims as PNG, each with the numbers that it shows in a CSV of the same name beside it."""

import csv
import io
import math
import pathlib

import numpy as np

from research import claims, compare, manifest, panels
from research.panels import PRINT, plain
from research.results import Results


def curves(runs: dict[str, list[list[dict]]], path: pathlib.Path, *, metric: str = "loss", title: str = "",
           unit: str = "") -> None:
  """Draws a metric over steps, for each arm its mean over seeds in a band from least to greatest.

  Args:
    runs: arm -> records of each seed, as of metrics.jsonl.
    path: of the PNG.
    metric: key of the records.
    title: of the figure.
    unit: of the metric.
  """
  lines = {arm: panels.line([points(records, metric) for records in of_seed]) for arm, of_seed in runs.items()}
  order = list(runs)
  figure, axes = new_figure(6.8, 4.2)
  panels.curves(axes, {order.index(arm): one for arm, one in lines.items() if one}, PRINT, marks=True)
  panels.style(axes, PRINT, title=title or metric, x="step", y=f"{metric} ({unit})" if unit else metric)
  _legend(axes, order)
  save(figure, path, ("arm", "step", "mean", "least", "greatest", "seeds"),
        [(arm, x, mean, low, high, one.seeds) for arm, one in lines.items() if one
         for x, mean, low, high in zip(*(row.tolist() for row in one[:4]))])


def points(records: list[dict], metric: str, x: str = "step") -> list[tuple[float, float]]:
  """Returns the (x, y) of the records that have both."""
  return [(record[x], float(record[metric])) for record in records
          if isinstance(record.get(metric), int | float) and isinstance(record.get(x), int | float)]


def finals(results: Results, path: pathlib.Path, *, metric: str = "eval/loss", against: str = "", unit: str = "",
           title: str = "") -> None:
  """Draws a final metric: a dot per seed, mean and 95 % interval per arm, and paired differences beside them.

  Args:
    results: of the arms.
    path: of the PNG.
    metric: a name in them.
    against: arm that the others are compared with; the first unless given.
    unit: of the metric.
    title: of the figure.
  """
  values = {arm: found.get(metric, {}) for arm, found in results.values.items()}
  order = list(values)
  against = against or order[0]
  found, apart = compare.means(values), compare.differences(values, against)
  left = [(order.index(arm), arm, list(m.values.values()), m.mean, m.interval) for arm, m in found.items()]
  # The baseline has a row in both panels, so that they have the same rows.
  right = [(order.index(arm), arm, list(d.values.values()), d.mean, d.interval)
           for arm, d in ((arm, apart.get(arm, compare.Mean({}, math.nan, None))) for arm in order)] if apart else []
  figure, axes = new_figure(9.6 if right else 5.6, 1.5 + 0.5 * len(order), 2 if right else 1)
  for one, rows, head in zip(np.atleast_1d(axes), (left, right), (title or metric, f"difference from {against}")):
    panels.dots(one, rows, PRINT, zero=rows is right)
    panels.style(one, PRINT, title=head, x=f"{metric} ({unit})" if unit else metric)
    one.grid(False, axis="y")
  rows = [(arm, "value", seed, value) for arm, m in found.items() for seed, value in m.values.items()]
  rows += [(arm, what, "", value) for arm, m in found.items()
           for what, value in zip(("mean", "low", "high"), (m.mean, *(m.interval or ())))]
  rows += [(arm, f"difference {what}", "", value) for arm, d in apart.items()
           for what, value in zip(("mean", "low", "high"), (d.mean, *(d.interval or ())))]
  save(figure, path, ("arm", "what", "seed", "value"), rows)


def claim_figure(record: dict, path: pathlib.Path) -> None:
  """Draws what a verdict was made of; writes `path` and, beside it, the values as CSV.

  Args:
    record: as research/judge.py makes it.
    path: of the PNG.
  """
  figure, axes = new_figure(6.4, 4.2)
  claim(axes, record, PRINT)
  scale = dict(zip(record["arms"], record.get("scale") or []))
  save(figure, path, ("arm", "scale", "seed", record["metric"]),
        [(arm, scale.get(arm, ""), seed, value) for arm, of_seed in record["values"].items()
         for seed, value in of_seed.items()])


def claim(axes, record: dict, theme: panels.Theme, order: list[str] | None = None) -> None:
  """Draws the panel of a verdict: a column per arm, a dot per seed, a thin line from arm to arm for each seed.

  A slope has its scale as x and both axes logarithmic; a threshold has its bound as a dashed line.

  Args:
    axes: of matplotlib.
    record: as research/judge.py makes it.
    theme: of colours.
    order: names of arms, by which they are coloured; those of the record unless given.
  """
  known = {arm: of_seed for arm, of_seed in record["values"].items() if of_seed}
  arms = [arm for arm in record["arms"] if arm in known]
  scale = dict(zip(record["arms"], record.get("scale") or []))
  at = {arm: scale.get(arm, i) for i, arm in enumerate(arms)}
  look = {arm: theme.of(order.index(arm) if order and arm in order else i) for i, arm in enumerate(record["arms"])}
  seeds = sorted({seed for arm in arms for seed in known[arm]}, key=lambda seed: (len(seed), seed))
  for k, seed in enumerate(seeds):
    # In a column of its own no line tells the seeds apart: they stand side by side.
    aside = (k - (len(seeds) - 1) / 2) * 0.1 if len(arms) == 1 else 0
    xy = [(at[arm] + aside, known[arm][seed], arm) for arm in arms if seed in known[arm]]
    axes.plot([x for x, _, _ in xy], [y for _, y, _ in xy], color=theme.soft, linewidth=0.9, alpha=0.7, zorder=1)
    for x, y, arm in xy:
      axes.plot([x], [y], marker=look[arm]["marker"], color=look[arm]["color"], markersize=6, alpha=0.8)
  for arm in arms:
    mean = math.fsum(known[arm].values()) / len(known[arm])
    axes.plot([at[arm]], [mean], marker="_", markersize=26, markeredgewidth=2.2, zorder=3, color=look[arm]["color"])
  if record.get("kind") == "threshold":
    bound = claims.quantity(record["bound"], "bound", record["id"])
    axes.axhline(bound.value, color=theme.ink, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate(plain(f"bound {bound}"), (1, bound.value), xycoords=("axes fraction", "data"), xytext=(-4, 4),
                  textcoords="offset points", ha="right", fontsize=9, color=theme.ink)
  axes.margins(x=0.3 if len(arms) < 4 else 0.1, y=0.14)
  if scale or panels.wants_log([value for arm in arms for value in known[arm].values()]):
    panels.log(axes, "y")
  if scale:
    axes.set_xscale("log")
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
  names = [f"{scale[arm]:g}" if scale else panels.short(arm, 18) for arm in arms]
  axes.set_xticks([at[arm] for arm in arms], [plain(name) for name in names])
  panels.style(axes, theme, title=panels.short(f"{record['verdict']}: {record['id']}", 52), below=_effect(record),
               x=panels.short(", ".join(arms), 60) if scale else "", y=panels.short(record["metric"], 32))
  axes.grid(False, axis="x")
  if not arms:
    axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=theme.soft)


def _effect(record) -> str:
  """Returns the number that was judged, its interval, and what it was held against."""
  if record.get("effect") is None:
    return ""
  text = f"{record['effect']:.4g} {record.get('unit', '')}"
  if record.get("interval"):
    text += " [{:.3g}, {:.3g}]".format(*record["interval"])
  asked = "margin" if record.get("margin") else "bound"
  return panels.short(f"{text}, {asked} {record.get(asked, '')}", 72)


def new_figure(width, height, columns=1, rows=1):
  """Returns a figure of that many inches, and its axes, row or grid of axes."""
  from matplotlib.figure import Figure
  figure = Figure(figsize=(width, height), dpi=144, layout="constrained")  # draws by Agg, whatever pyplot is set to
  return figure, figure.subplots(rows, columns)


def _legend(axes, names):
  from matplotlib.lines import Line2D
  looks = [PRINT.of(i) for i in range(len(names))]
  axes.legend([Line2D([], [], linewidth=1.7, markersize=4, **look) for look in looks],
              [plain(panels.short(name, 40)) for name in names], frameon=False, fontsize=8.5)


def save(figure, path, head, rows):
  """Writes a figure as PNG, and the numbers that it shows beside it as CSV."""
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)
  text = io.StringIO()
  write = csv.writer(text, lineterminator="\n")
  write.writerow(head)
  write.writerows([repr(cell) if isinstance(cell, float) else cell for cell in row] for row in rows)
  manifest.write_atomically(path.with_suffix(".csv"), text.getvalue().encode())
