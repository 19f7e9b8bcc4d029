"""Tables of a report: verdicts, final metrics with paired differences, models, settings, environments."""

import json
import math

from research import compare
from research import report_data as data
from research.report_figures import mark
from research.report_html import Html, join, table, tag

# Quantity of model_table.csv -> heading.
QUANTITIES = {
    "parameters": "parameters", "parameters without embeddings": "without embeddings",
    "decoding state": "state, bytes per sequence", "forward": "FLOPs per token, forward",
    "forward and backward": "forward and backward", "tokens per step": "tokens per step", "steps": "steps",
}
NONE = "\u2013"
SHOWN = 6  # metrics whose table is open
CELL = 200  # characters shown of one setting


def number(value, digits=4) -> str:
  """Returns a number of a metric, NONE for what is missing or not finite."""
  return f"{value:.{digits}g}" if isinstance(value, int | float) and math.isfinite(value) else NONE


def decimals(values, digits=4) -> int | None:
  """Returns the decimals that give the largest of some numbers so many digits; None where none of it reads well."""
  sizes = [abs(v) for v in values if math.isfinite(v) and v]
  if not sizes or max(sizes) >= 1e6 or max(sizes) < 1e-4:
    return None
  return max(0, digits - 1 - math.floor(math.log10(max(sizes))))


def fixed(value, places, sign="") -> str:
  """Returns a number with so many decimals, so that a column lines up; with three digits where `places` is None."""
  if value is None or not math.isfinite(value):
    return NONE
  return f"{value:{sign}.3g}" if places is None else f"{value:{sign}.{places}f}"


def interval(pair, places=None, sign="") -> str:
  """Returns "[low, high]"."""
  return f"[{fixed(pair[0], places, sign)}, {fixed(pair[1], places, sign)}]" if pair else NONE


def directions(study) -> dict[str, str]:
  """Returns metric -> "lower", "higher" or "": what its claims want, else what its name says."""
  told = {v["metric"]: v.get("better", "") for v in study.verdicts}
  return {metric: compare.direction(metric, told.get(metric, "")) for metric in data.final_metrics(study.arms)}


def verdicts(study) -> Html:
  """Returns a row per claim."""
  rows = []
  for v in study.verdicts:
    effect = f"{number(v.get('effect'))} {v.get('unit') or ''}".strip()
    asked = v.get("margin") or v.get("bound")
    word = str(v["verdict"])
    rows.append([
        tag("span", v["id"], tag("span", f"{v.get('paper', '')}, {v.get('year', '')}".strip(", "), class_="small"),
            class_="words"),
        tag("span", word, class_=f"mark {word}" if word in ("HOLDS", "FAILS", "INCONCLUSIVE") else "mark"),
        tag("div", v.get("statement", ""), tag("span", v.get("sentence", ""), class_="small"), class_="wide"),
        join([effect, tag("span", interval(v.get("interval")), class_="small") if v.get("interval") else "",
              tag("span", f"{'margin' if v.get('margin') else 'bound'} {asked}", class_="small") if asked else ""]),
        f"{len(v.get('seeds') or [])} of {v.get('asked_seeds', NONE)}",
        v.get("paper_value") or NONE])
  return table("What the paper claims, and what these runs say. Effect with its 95 % interval.",
               ["claim", "verdict", "statement", "effect", "seeds", "paper's value"], rows, numbers=False)


def finals(study) -> Html:
  """Returns a table per final metric: mean, interval, and the paired difference from the first arm."""
  if len(study.arms) == 1:
    return _of_one_arm(study.arms[0], directions(study))
  values, made = data.results(study).values, []
  for metric, want in directions(study).items():
    of_arm = {arm: found.get(metric, {}) for arm, found in values.items()}
    means, apart = compare.means(of_arm), compare.differences(of_arm, study.against, want)
    places = decimals([m.mean for m in means.values()] + [d.mean for d in apart.values()])
    rows = []
    for i, (arm, mean) in enumerate(means.items()):
      row = [mark(i, arm), fixed(mean.mean, places), interval(mean.interval, places), len(mean.values)]
      if arm in apart:
        d = apart[arm]
        row += [fixed(d.mean, places, "+"), interval(d.interval, places, "+"), number(d.p, 2), d.word]
      else:
        row += [NONE, NONE, NONE, "baseline"]
      rows.append(row)
    made.append(table(join([tag("strong", metric), f", {want} is wanted" if want else ""]),
                      ["arm", "mean", "95 % interval", "seeds", f"difference from {study.against}", "95 % interval",
                       "p (Holm)", "that is"], rows, label=metric))
  if not made:
    return Html("")
  open_ones = len(data.of_the_study(data.final_metrics(study.arms), SHOWN))
  rest, arms = made[open_ones:], len(study.arms) - 1
  note = ("Intervals are Student's t. Differences are paired by seed; p is corrected after Holm over "
          f"{arms} arm{'s' * (arms > 1)} of a metric.")
  return join([tag("p", note, class_="note"), *made[:open_ones],
               tag("details", tag("summary", f"{len(rest)} more metrics"), *rest) if rest else ""])


def _of_one_arm(arm, metrics) -> Html:
  """Returns a row per metric."""
  means = {metric: compare.means({"": arm.of(metric)})[""] for metric in metrics}
  if not means:
    return Html("")
  if len(arm.runs) == 1:
    return table("At the end of training.", ["metric", "value"],
                 [[metric, fixed(mean.mean, decimals([mean.mean]))] for metric, mean in means.items()])
  rows = [[metric, fixed(mean.mean, places := decimals([mean.mean])), interval(mean.interval, places), len(mean.values)]
          for metric, mean in means.items()]
  return table("At the end of training, over seeds. Intervals are Student's t.",
               ["metric", "mean", "95 % interval", "seeds"], rows)


def across(studies) -> Html:
  """Returns the table that compares all arms of several studies."""
  arms = [(study, i, arm) for study in studies for i, arm in enumerate(study.arms)]
  metrics = [m for m in data.final_metrics([arm for _, _, arm in arms])]
  found = {(study.directory, arm.name): {m: compare.means({"": arm.of(m)})[""] for m in metrics}
           for study, _, arm in arms}
  places = {m: decimals([mean[m].mean for mean in found.values()]) for m in metrics}
  def cell(metric, mean):
    below = tag("span", interval(mean.interval, places[metric]), class_="small") if mean.interval else ""
    return join([fixed(mean.mean, places[metric]), below])
  rows = [[join([mark(i, arm.name), tag("span", study.title, class_="small")]),
           f"{sum(run.status == data.DONE for run in arm.runs)} of {len(arm.runs)}",
           *(cell(m, found[study.directory, arm.name][m]) for m in metrics)] for study, i, arm in arms]
  return table("Final metrics of all studies: mean over seeds, with the 95 % interval below it.",
               ["arm and study", "seeds", *metrics], rows)


def models(study) -> Html:
  """Returns a row per arm: what was counted, and the time measured for a step."""
  known = [q for q in QUANTITIES if any(q in arm.table for arm in study.arms)]
  steps = [arm.step_ms for arm in study.arms]
  if not known and not any(steps):
    return Html("")
  rows = [[mark(i, arm.name), *(f"{arm.table[q]:,.0f}" if q in arm.table else NONE for q in known),
           f"{ms:,.4g}" if ms else NONE] for i, (arm, ms) in enumerate(zip(study.arms, steps))]
  return table("Counted from the traced program; the time of a step is the median over all logged intervals.",
               ["arm", *(QUANTITIES[q] for q in known), "ms per step"], rows)


def flat(node: dict, at: str = "") -> dict[str, str]:
  """Returns dotted key -> value as JSON, cut to CELL characters."""
  found = {}
  for key, value in node.items():
    if isinstance(value, dict) and value:
      found |= flat(value, f"{at}{key}.")
    else:
      text = value if isinstance(value, str) and value else json.dumps(value)
      found[f"{at}{key}"] = text if len(text) <= CELL else text[:CELL - 1] + "\u2026"
  return found


def differing(study) -> Html:
  """Returns the settings that are not the same in all arms; what a sweep set, where no config was written yet."""
  configs = [flat(arm.config) or {k: str(v)[:CELL] for k, v in arm.overrides.items()} for arm in study.arms]
  keys = sorted({key for config in configs for key in config})
  rows = [[tag("code", key), *(config.get(key, NONE) for config in configs)] for key in keys
          if len({config.get(key) for config in configs}) > 1]
  if not rows:
    return tag("p", "No setting differs.", class_="note") if keys else Html("")
  return table("Only settings that differ; a dash where an arm has no such setting.",
               ["setting", *(mark(i, arm.name) for i, arm in enumerate(study.arms))], rows, numbers=False)


def settings(arm) -> Html:
  """Returns the whole config of an arm."""
  return table("Settings of the run.", ["setting", "value"],
               [[tag("code", key), value] for key, value in sorted(flat(arm.config).items())], numbers=False)


def environments(study) -> Html:
  """Returns versions, devices and revision, a column for each environment that was used."""
  groups = {}
  for arm in study.arms:
    if arm.environment:
      shown = {"commit": str(arm.environment.get("commit") or NONE),
               "working tree": {True: "dirty: had changes that no commit holds", False: "clean"}.get(
                   arm.environment.get("dirty"), NONE)}
      shown |= {k: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in arm.environment.items()
                if k not in shown and k != "dirty" and v != ""}
      groups.setdefault(json.dumps(shown), (shown, []))[1].append(arm.name)
  found = list(groups.values())
  if not found:
    return Html("")
  keys = dict.fromkeys(key for shown, _ in found for key in shown)
  head = ["", "all arms" if len(study.arms) > 1 else "value"] if len(found) == 1 else \
      ["", *(", ".join(names) for _, names in found)]
  return table("Where it ran.", head, [[key, *(shown.get(key, NONE) for shown, _ in found)] for key in keys],
               numbers=False)
