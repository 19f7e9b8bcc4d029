"""What experiments there are: `research.run --list` and `--describe`.

All of it is said by the experiment files themselves: the docstring's first line
is the question, lines such as "cpu: 2 cores, 5 minutes" are the costs, and
`arms()` and `claims()`, where a file has them, say what is compared and believed.
"""

import inspect
import json
import re

from research import config as configs


def experiments() -> list[dict]:
  """Returns one record per experiment file, in alphabetical order."""
  return [_record(name) for name in configs.experiment_names()]


def _record(name):
  module = configs.load_file(name)
  text = inspect.getdoc(module) or ""
  presets = getattr(module, "PRESETS", ("cpu",))
  costs = dict(re.findall(rf"^({'|'.join(presets)}): (.+)$", text, re.MULTILINE))
  claims = module.claims() if hasattr(module, "claims") else []
  return {
      "experiment": name,
      "question": text.partition("\n")[0],
      "presets": {preset: costs.get(preset, "not measured") for preset in presets},
      "arms": sorted(module.arms()) if hasattr(module, "arms") else [],
      "claims": [{"id": c.id, "paper": c.paper, "statement": c.statement} for c in claims],
  }


def as_json() -> str:
  """Returns all records as JSON text."""
  return json.dumps(experiments(), indent=2)


def as_text() -> str:
  """Returns all records as a page for the terminal."""
  return "\n\n".join(_page(record) for record in experiments())


def _page(record) -> str:
  lines = [record["experiment"], f"  {record['question']}"]
  lines += [f"  :{preset:<6} {cost}" for preset, cost in record["presets"].items()]
  if record["arms"]:
    lines.append(f"  arms: {', '.join(record['arms'])}")
  lines += [f"  claim {c['id']} ({c['paper']}): {c['statement']}" for c in record["claims"]]
  return "\n".join(lines)


def describe(name: str) -> str:
  """Returns the docstring of one experiment and its record."""
  text = inspect.getdoc(configs.load_file(name)) or ""
  return f"{text}\n\n{_page(_record(name))}"
