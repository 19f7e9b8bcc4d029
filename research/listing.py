"""What experiments and layers there are: `research.run --list` and `--describe`.

All of it is said by the files themselves. An experiment: the docstring's first line
is the question, lines such as "cpu: 2 cores, 5 minutes" are the costs, and
`arms()` and `claims()`, where a file has them, say what is compared and believed.
A layer: the papers of the paragraph "Reference:" of its file.
"""

import ast
import inspect
import json
import re

from research import config as configs
from research import find

# Kind of layer -> the key that chooses one.
KINDS = {"mixer": "model.mixer.name", "channel": "model.channel.name", "router": "model.channel.router.name",
         "norm": "model.norm.name", "policy": "model.policy.name"}


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


def layers(kind: str) -> list[tuple[str, list[str]]]:
  """Returns (name, papers as "title (year)") of every layer of a kind, read without importing one."""
  return [(name, _papers(find.path_of(kind, name).read_text("utf-8"))) for name in sorted(find.names(kind))]


def _papers(source: str) -> list[str]:
  text = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
  _, _, cited = re.sub(r"References?:", "\0", text).rpartition("\0")
  return [f"{title} ({year})" for title, year in re.findall(r'"([^"]+)", (\d{4})', cited)]


def as_json() -> str:
  """Returns all records as JSON text."""
  return json.dumps(experiments(), indent=2)


def as_text() -> str:
  """Returns all records as a page for the terminal, and after them the layers."""
  return "\n\n".join([*map(_page, experiments()), *map(_shelf, KINDS)])


def _shelf(kind) -> str:
  lines = [f"{kind} (--config.{KINDS[kind]})"]
  for name, papers in layers(kind):
    lines.append(f"  {name}: {'; '.join(papers)}")
  return "\n".join(lines)


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
