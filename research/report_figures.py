"""Figures of a report: final metrics, curves, depth profiles and claims, as panels that take the page's colours."""

import math

from research import compare, panels, sweep_plots
from research import report_data as data
from research.report_html import Html, tag
from research.report_svg import PAGE, panel

PANELS = 6  # metrics drawn; the tables have all
PROFILES = {
    "residual_variance": "residual variance", "update_norm": "update norm", "gradient_norm": "gradient norm",
    "attention_entropy": "attention entropy", "massive_activation": "massive activation",
    "skip_loss": "loss when skipped",
}
# The marks of panels.MARKERS in a box of 34 by 16.
_SHAPES = {
    "o": '<circle cx="17" cy="8" r="4.2"/>', "s": '<path d="M13 4h8v8h-8z"/>', "D": '<path d="M17 3l5 5-5 5-5-5z"/>',
    "^": '<path d="M17 3l5 9h-10z"/>', "v": '<path d="M17 13l5-9h-10z"/>',
    "P": '<path d="M15 3h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
    "X": '<path d="M14 3l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z"/>',
    "*": '<path d="M17 2l1.8 4 4.2.4-3.200 2.800 1 4.300-3.800-2.300-3.800 2.300 1-4.300-3.200-2.800 4.200-.4z"/>',
}


def mark(i: int, name: str) -> Html:
  """Returns the name of the i-th arm with the line and mark it has in all figures."""
  look = PAGE.of(i)
  color = f"var(--arm{i % len(PAGE.arms)})"
  dash = {} if look["linestyle"] == "-" else {"stroke_dasharray": " ".join(str(2 * x) for x in look["linestyle"][1])}
  line = tag("path", d="M1 8h32", stroke=color, stroke_width="2.5", **dash)
  shape = tag("g", Html(_SHAPES[look["marker"]]), fill=color)
  return tag("span", tag("svg", line, shape, viewBox="0 0 34 16", aria_hidden="true"), tag("span", name), class_="arm")


def legend(study) -> Html:
  """Returns the arms with their marks."""
  if len(study.arms) < 2:
    return Html("")
  return tag("ul", *(tag("li", mark(i, arm.name)) for i, arm in enumerate(study.arms)), class_="legend",
             aria_label="Legend")


def _figure(study, drawn, caption, key=True) -> Html:
  if not drawn:
    return Html("")
  return tag("figure", legend(study) if key else "", tag("div", *drawn, class_="panels"),
             tag("figcaption", caption) if caption else "")


def finals(study) -> Html:
  """Returns dots per seed with means, and the paired differences, of the first few metrics."""
  values, drawn = data.results(study).values, []
  order = [arm.name for arm in study.arms]
  metrics = data.final_metrics(study.arms)
  shown = data.of_the_study(metrics, PANELS)
  for metric in shown:
    of_arm = {arm: found.get(metric, {}) for arm, found in values.items()}
    means = compare.means(of_arm)
    apart = compare.differences(of_arm, study.against) if len(order) > 1 else {}
    if apart:  # a row for the baseline too, so that both panels have the same rows
      apart = {arm: apart.get(arm, compare.Mean({}, math.nan, None)) for arm in means}
    height = 1.0 + 0.42 * len(order)
    for found, title, zero in ((means, metric, False), (apart, f"{metric}: difference from {study.against}", True)):
      rows = [(order.index(arm), arm, list(m.values.values()), m.mean, m.interval) for arm, m in found.items()]
      if any(row[2] for row in rows):
        drawn.append(panel(lambda axes: _dots(axes, rows, title, zero), _told(title, rows), height=height))
  left = f" The other {len(metrics) - len(shown)} metrics are in the table." if len(metrics) > len(shown) else ""
  return _figure(study, drawn, f"A mark per seed; above them the mean and its 95 % interval.{left}", key=False)


def _dots(axes, rows, title, zero):
  panels.dots(axes, rows, PAGE, zero=zero)
  panels.style(axes, PAGE, title=panels.short(title, 54))
  axes.grid(False, axis="y")


def _told(title, rows) -> str:
  """Returns a figure of rows in words."""
  def one(name, mean, interval):
    return f"{name} {mean:.4g}" + (f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else "")
  return f"{title}: " + "; ".join(one(name, mean, pair) for _, name, _, mean, pair in rows if math.isfinite(mean))


def curves(study) -> Html:
  """Returns training and validation curves, over tokens where the arms' steps differ in size."""
  keys = {key for arm in study.arms for run in arm.runs for record in run.records for key in record}
  sizes = {r["tokens"] / r["step"] for arm in study.arms for run in arm.runs for r in run.records[:1]
           if r.get("tokens") and r.get("step")}
  x = "tokens" if len(sizes) > 1 else "step"
  wanted = [("loss", "training loss")] + [(k, k) for k in sorted(keys, key=lambda k: (k != "eval/loss", k))
                                          if k.startswith("eval/")]
  drawn, few = [], False
  for key, title in wanted[:PANELS]:
    lines = {i: panels.line([_points(run.records, key, x) for run in arm.runs]) for i, arm in enumerate(study.arms)}
    lines = {i: line for i, line in lines.items() if line is not None and len(line.x)}
    few = few or any(line.seeds > 1 for line in lines.values())
    if lines:
      told = f"{title} over {x}: " + "; ".join(
          f"{study.arms[i].name} ends at {line.mean[-1]:.4g} ({line.x[-1]:g})" for i, line in lines.items())
      drawn.append(panel(lambda axes: _curve(axes, lines, title, x, key != "loss"), told))
  band = "Mean over seeds, in a band from the least to the greatest. " if few else ""
  long = any(len(run.records) > panels.POINTS for arm in study.arms for run in arm.runs)
  return _figure(study, drawn, f"{band}{'Long curves are averaged in buckets; bands are not. ' if long else ''}")


def _points(records, key, x):
  """Returns the points of a metric; evaluations do not log tokens, which are counted from the step."""
  if x == "step":
    return sweep_plots.points(records, key)
  size = next((r["tokens"] / r["step"] for r in records if r.get("tokens") and r.get("step")), None)
  return [(step * size, y) for step, y in sweep_plots.points(records, key)] if size else []


def _curve(axes, lines, title, x, marks):
  panels.curves(axes, lines, PAGE, marks=marks)
  panels.style(axes, PAGE, title=panels.short(title, 54), x=x)


def depth(study) -> Html:
  """Returns profiles over layers at the last step that each arm recorded."""
  drawn = []
  for key, title in PROFILES.items():
    lines = {}
    for i, arm in enumerate(study.arms):
      rows = [_profile(run.depth, key) for run in arm.runs]
      line = panels.line([row for row in rows if row])
      if line is not None and len(line.x):
        lines[i] = line
    if any(math.isfinite(y) for line in lines.values() for y in line.mean):
      told = f"{title} by layer: " + "; ".join(
          f"{study.arms[i].name} {line.mean[0]:.3g} at the first, {line.mean[-1]:.3g} at the last"
          for i, line in lines.items())
      drawn.append(panel(lambda axes: _curve(axes, lines, title, "layer", True), told, height=2.7))
  return _figure(study, drawn, "At the last step recorded; mean over seeds, in a band from the least to the greatest.")


def _profile(records, key) -> list[tuple[float, float]]:
  last = next((r[key] for r in reversed(records) if isinstance(r.get(key), list)), [])
  return [(i + 1, float(y)) for i, y in enumerate(last) if isinstance(y, int | float)]


def claims(study) -> Html:
  """Returns a panel per verdict that has values."""
  order = [arm.name for arm in study.arms]
  drawn = [panel(lambda axes: sweep_plots.claim(axes, record, PAGE, order),
                 f"Values of claim {record['id']}: " + "; ".join(
                     f"{arm} mean {math.fsum(v.values()) / len(v):.4g}" for arm, v in record["values"].items() if v))
           for record in study.verdicts if any(record["values"].values())]
  return _figure(study, drawn, "What each verdict was made of: a mark per seed, a thin line per seed from arm to arm, "
                 "a bar for the mean.")
