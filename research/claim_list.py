"""What claims there are, and what was last recorded of them: `research.verify --list`."""

import json

from research import arms
from research import config as configs
from research import verdict_files


def claims() -> list[dict]:
  """Returns one record per claim of every experiment file."""
  known = {(record["experiment"], record["id"]): record for record in verdict_files.recorded()}
  found = []
  for name in configs.experiment_names():
    for claim in arms.claims_of(name):
      record = known.get((name, claim.id), {})
      found.append({"id": claim.id, "experiment": name, "paper": claim.paper, "year": claim.year,
                    "statement": claim.statement, "kind": claim.kind, "minutes": record.get("minutes"),
                    "verdict": record.get("verdict")})
  return found


def as_json() -> str:
  """Returns the list as JSON text."""
  return json.dumps(claims(), indent=2)


def as_text() -> str:
  """Returns the list as a page for the terminal."""
  pages = []
  for claim in claims():
    last = f"{claim['verdict']}, {claim['minutes']:g} core minutes" if claim["verdict"] else "never recorded"
    pages.append(f"{claim['id']}  ({claim['experiment']}; {last})\n  {claim['statement']}\n"
                 f"  {claim['paper']}, {claim['year']}")
  return "\n".join(pages) or "no experiment has claims() yet"
