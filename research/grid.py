"""Which settings a sweep tries: the grammar of --vary, as lists of dotted overrides.

    a.b=1,2            two arms
    a.b=1,2;c=x,y      product: every combination, four arms
    a.b=1,2|c=x,y      zip: side by side, two arms; binds tighter than ";"
    two --vary flags   chain: the arms of the first, then those of the second

A value that holds commas stands in parentheses: model.pattern=(gla,attention),(gla).
"""

import itertools
import re

from research.errors import ConfigError, shown

Arms = list[dict[str, str]]  # dotted key -> value, per arm


def values(key: str, given) -> Arms:
  """Returns one arm per value of one key."""
  return [{key: value} for value in given]


def product(*parts: Arms) -> Arms:
  """Returns every combination, the last part varying fastest."""
  return [_merged(combination) for combination in itertools.product(*parts)]


def zipped(*parts: Arms) -> Arms:
  """Returns the first arms together, then the second ones, and so on."""
  if len({len(part) for part in parts}) > 1:
    raise ConfigError(f"--vary: {' and '.join(str(len(p)) for p in parts)} values side by side; "
                      "'|' needs equally many on each side, ';' makes every combination.")
  return [_merged(together) for together in zip(*parts)]


def chain(*parts: Arms) -> Arms:
  """Returns the arms of the first part, then those of the next, each once."""
  found = []
  for arm in itertools.chain(*parts):
    if arm not in found:
      found.append(arm)
  return found


def parse(texts) -> Arms:
  """Returns the arms that one or several --vary flags ask for.

  Raises:
    ConfigError: text that is not of the grammar.
  """
  return chain(*(product(*(zipped(*map(_factor, part.split("|"))) for part in text.split(";")))
                 for text in texts))


def _factor(text: str) -> Arms:
  key, equals, listed = text.strip().partition("=")
  found = re.findall(r"\(([^()]*)\)|([^,()]+)", listed)
  rebuilt = ",".join(f"({a})" if a or not b else b for a, b in found)
  if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key) or not found or rebuilt != listed:
    raise ConfigError(f"--vary={shown(text)} must be KEY=VALUE,VALUE..., as in optim.lr=1e-3,3e-3; "
                      "';' combines keys, '|' pairs them, parentheses hold a value with commas.")
  return values(key.removeprefix("config."), [(a or b).strip() for a, b in found])


def _merged(parts) -> dict[str, str]:
  merged = {}
  for part in parts:
    for key, value in part.items():
      if merged.get(key, value) != value:
        raise ConfigError(f"--vary sets {key} twice in one arm, to {shown(merged[key])} and {shown(value)}.")
      merged[key] = value
  return merged
