"""The page of a report: for each study what was asked, what came out, and what it was made with."""

import time

from research import report_data as data
from research import report_figures as figures
from research import report_tables as tables
from research.report_html import Html, document, join, tag

SAMPLE = 20_000  # characters shown of one


def page(studies: list[data.Study]) -> str:
  """Returns the HTML of one or more studies."""
  title = f"{studies[0].title}" if len(studies) == 1 else f"{len(studies)} studies compared"
  heading = [tag("h1", title)]
  if len(studies) > 1:
    heading.append(tag("nav", tag("ul", *(tag("li", tag("a", s.title, href=f"#study{i}"))
                                          for i, s in enumerate(studies))), aria_label="Studies"))
    body = [tables.across(studies), *(_study(s, i, tag("h2", s.title)) for i, s in enumerate(studies))]
  else:
    heading += _opening(studies[0])
    body = [_study(studies[0], 0, None)]
  return document(f"{title} - strata", tag("header", *heading), tag("main", *body),
                  tag("footer", tag("p", f"Made {_date(time.time())} by research.report from ",
                                    join((tag("code", s.directory) for s in studies), ", "), ".")))


def _study(study, i, heading) -> Html:
  opening = [heading, *_opening(study)] if heading else []
  parts = [*opening, _verdicts(study), _finals(study), _curves(study), _models(study), _depth(study), _samples(study),
           _config(study), _environment(study)]
  return tag("section", *filter(None, parts), id=f"study{i}")


def _opening(study) -> list[Html]:
  runs = [run for arm in study.arms for run in arm.runs]
  done = sum(run.status == data.DONE for run in runs)
  kind = {"run": "One run", "seeds": "One configuration under several seeds", "sweep": "Sweep"}[study.kind]
  size = f"{_count(len(study.arms), 'arm')}, {_count(len(runs), 'run')}, " if study.kind != "run" else ""
  when = ""
  if study.dates:
    first, last = map(_date, study.dates)
    # Of two times of one day the date is said once.
    when = f", {first} to {last[11:] if last[:10] == first[:10] else last}" if first != last else f", {first}"
  state = f"{done} of {len(runs)} finished" if study.kind != "run" else ("finished" if done else "not finished")
  lines = [tag("p", f"{kind}: {size}{state}{when}.", class_="lead")]
  if study.notes:
    lines.append(tag("aside", tag("p", "Missing or incomplete"), tag("ul", *(tag("li", note) for note in study.notes)),
                     aria_label="Missing or incomplete"))
  return lines


def _count(n, what) -> str:
  return f"{n} {what}{'s' * (n != 1)}"


def _date(seconds) -> str:
  return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def _block(heading, *parts) -> Html:
  """Returns a headed block, or nothing where none of its parts has anything to show."""
  return join([tag("h3", heading), *filter(None, parts)]) if any(parts) else Html("")


def _verdicts(study):
  return _block("Verdicts", tables.verdicts(study), figures.claims(study)) if study.verdicts else Html("")


def _finals(study):
  several = any(len(arm.runs) > 1 for arm in study.arms) or len(study.arms) > 1
  return _block("Final metrics", figures.finals(study) if several else "", tables.finals(study))


def _curves(study):
  return _block("Curves", figures.curves(study))


def _models(study):
  return _block("Models", tables.models(study))


def _depth(study):
  return _block("Depth profiles", figures.depth(study))


def _samples(study):
  shown = []
  for arm in study.arms:
    run = next((run for run in arm.runs if run.samples), None)
    if run:
      text = run.samples[:SAMPLE]
      rest = len(run.samples) - len(text)
      shown.append(tag("details", tag("summary", f"{arm.name}, seed {run.seed}"), tag("pre", text),
                       tag("p", f"{rest:,} more characters in samples.txt", class_="note") if rest else ""))
  return _block("Samples", *shown)


def _config(study):
  if len(study.arms) > 1:
    return _block("What differs between the arms", tables.differing(study))
  return _block("Configuration", *(tag("details", tag("summary", "All settings"), tables.settings(arm))
                                   for arm in study.arms if arm.config))


def _environment(study):
  return _block("Environment", tables.environments(study))
