"""Verdicts on the terminal, on disk, and in the record that the project keeps.

    <directory>/verdict.json  summary.md  figures/<claim>.{png,csv}  figures/frontier-<metric>.{png,csv}
                              figures/in-context-{risk,layers}-<arm>.{png,csv}  figures/depth-<layers>.{png,csv}
    research/results/<experiment>/verdict.json  <claim>.{png,csv}     with --record
    research/results/README.md                                        the scoreboard, from those
"""

import datetime
import json
import pathlib
import shutil
import sys

from research import find, manifest, metrics, plan
from research.errors import ConfigError

RECORDS = find.ROOT / "research" / "results"


def judged(asked: plan.Plan, claims) -> list:
  """Returns the judge.Verdicts, and writes verdict.json, results.csv, figures and summary.md."""
  from research import judge, study_figures  # scipy's statistics take a second; a list of claims needs none
  found = plan.collect(asked)
  verdicts = [judge.judge(claim, found) for claim in claims]
  study_figures.draw(asked, found)
  file = asked.directory / "verdict.json"
  before = {record["id"]: record for record in json.loads(file.read_text())} if file.is_file() else {}
  records = []
  for verdict in verdicts:
    record = judge.as_record(verdict, minutes=_minutes(asked, verdict))
    if before.get(record["id"]) != record:
      _draw(record, asked.directory / "figures" / f"{record['id']}.png")
    records.append(record)
  kept = [record for key, record in before.items() if key not in {r["id"] for r in records}]
  manifest.write_atomically(file, json.dumps([*records, *kept], indent=2).encode())
  lines = [f"- {r['verdict']}: {r['statement']} ({r['sentence']})" for r in [*records, *kept]]
  manifest.write_atomically(asked.directory / "summary.md",
                            "\n".join([f"# Claims of {asked.spec}", "", *lines, ""]).encode())
  return verdicts


def _draw(record, path):
  from research import sweep_plots
  path.parent.mkdir(parents=True, exist_ok=True)
  sweep_plots.claim_figure(record, path)


def _minutes(asked, verdict) -> float:
  """Returns the minutes of one core that the units of a claim took, those of their host's threads on an accelerator."""
  total = 0.0
  for arm in verdict.claim.needs:
    for line in metrics.read(asked.directory / "arms" / arm / "units.jsonl"):
      total += line.get("cpu_seconds", line["seconds"]) * len(set(line["seeds"]) & set(verdict.seeds)) / len(line["seeds"])
  return round(total / 60, 2)


def show(asked, verdicts) -> None:
  """Prints the table of verdicts."""
  import rich.console
  import rich.table
  table = rich.table.Table(box=None, pad_edge=False, show_lines=False)
  table.add_column("verdict", style="bold", no_wrap=True)
  table.add_column("claim", overflow="fold")
  table.add_column("seen", overflow="fold")
  table.add_column("paper", overflow="fold")
  for verdict in verdicts:
    table.add_row(verdict.verdict, verdict.claim.id, verdict.sentence, verdict.claim.paper_value)
  console = rich.console.Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)
  console.print(table)
  print(f"figures in {asked.directory / 'figures'}")


def record(asked, verdicts, preset: str) -> None:
  """Keeps verdicts with what they were measured on; other claims of the experiment stay as they were.

  Raises:
    ConfigError: the experiment file is not one of the project's.
  """
  name = pathlib.Path(asked.spec.partition(":")[0]).stem
  if asked.spec.partition(":")[0] != name and pathlib.Path(asked.spec.partition(":")[0]).resolve().parent != (
      find.ROOT / "experiments"):
    raise ConfigError(f"--record is for the files in experiments/; {asked.spec.partition(':')[0]!r} is not there.")
  folder = RECORDS / name
  folder.mkdir(parents=True, exist_ok=True)
  file = folder / "verdict.json"
  records = {r["id"]: r for r in json.loads(file.read_text())} if file.is_file() else {}
  environment = json.loads((asked.directory / "arms" / verdicts[0].claim.needs[0] / "env.json").read_text())
  fresh = {r["id"]: r for r in json.loads((asked.directory / "verdict.json").read_text())}
  for verdict in verdicts:
    key = verdict.claim.id
    records[key] = fresh[key] | {"experiment": name, "preset": preset, "environment": environment,
                                 "date": datetime.date.today().isoformat()}
    for suffix in (".png", ".csv"):
      shutil.copyfile(asked.directory / "figures" / f"{key}{suffix}", folder / f"{key}{suffix}")
  from research import scoreboard, study_figures
  for kind in study_figures.KINDS:
    for drawn in (asked.directory / "figures").glob(kind):
      shutil.copyfile(drawn, folder / drawn.name)
  manifest.write_atomically(file, (json.dumps([records[k] for k in sorted(records)], indent=2) + "\n").encode())
  manifest.write_atomically(RECORDS / "README.md", scoreboard.page(recorded(), whole()).encode())
  print(f"recorded in {folder}")


def whole() -> dict[str, list[str]]:
  """Returns experiment -> names of its recorded figures that show more than one claim."""
  from research import study_figures
  found = {}
  for path in sorted(path for kind in study_figures.KINDS for path in RECORDS.glob(f"*/{kind}.png")):
    found.setdefault(path.parent.name, []).append(path.stem)
  return found


def recorded() -> list[dict]:
  """Returns all records of the project."""
  return [record for path in sorted(RECORDS.glob("*/verdict.json")) for record in json.loads(path.read_text())]
