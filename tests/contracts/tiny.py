"""Builds every layer of a kind at a size for tests, found by walking its folder.

A class that needs other fields than these says so beside itself in a module
constant TINY, a dict of its fields.
"""

import importlib

from research import find

FIELDS = dict(heads=2, head_dim=4, key_dim=4, value_dim=6, max_tokens=16, hidden=12, half_life=6.0)


def layers(kind: str) -> list[str]:
  """Returns the names of all layers of that kind."""
  return list(find.names(kind))


def build(kind: str, name: str, **fields):
  """Returns the layer with tiny sizes and the given fields."""
  cls = find.find(kind, name, kind)
  tiny = getattr(importlib.import_module(cls.__module__), "TINY", {})
  known = find.fields(cls)
  return cls(**{k: v for k, v in {**FIELDS, **tiny, **fields}.items() if k in known})
