"""The record of a run: metrics.jsonl, one JSON object per line, the same text for the same bits.

Numbers are written by repr, so equal bits give equal lines; nan and infinities become the strings "nan", "inf",
"-inf", which keeps every line valid JSON. Fields that measure time are apart (`WALL_CLOCK`): without them the lines
of two runs of one config and seed are equal, also when one of them was cut and resumed.
"""

import json
import math
import os
import pathlib

from absl import logging
import numpy as np

from research import manifest

WALL_CLOCK = ("time", "tokens_per_s", "wall_s")
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class MetricsFile:
  """Appends records; on opening, mends what a kill left and drops what the resumed run will write again.

  Only process 0 touches the file. A write that fails (disk full) is reported once and tried again with the next.

  Args:
    path: the .jsonl file.
    resume_step: lines with a larger "step" are dropped; None starts an empty file.

  Raises:
    ValueError: a line other than the torn last one is not JSON.
  """

  def __init__(self, path, resume_step: int | None):
    import jax  # half a second that readers of metrics need not spend
    self._path = pathlib.Path(path)
    self._backlog = b""
    self._failed = False
    self._handle = None
    if jax.process_index() == 0:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      kept = [] if resume_step is None else [
          line for line in _lines(self._path) if json.loads(line).get("step", resume_step) <= resume_step]
      manifest.write_atomically(self._path, b"".join(line + b"\n" for line in kept))
      self._handle = os.open(self._path, os.O_WRONLY | os.O_APPEND)

  def write(self, record: dict):
    """Appends one line; values are str, bool, numbers, arrays, None, or lists and dicts of them."""
    if self._handle is None:
      return
    self._backlog += json.dumps(_plain(record), separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    try:
      while self._backlog:
        self._backlog = self._backlog[os.write(self._handle, self._backlog):]
      self._failed = False
    except OSError as error:
      if not self._failed:
        logging.error("metrics are kept in memory, %s cannot be written: %s", self._path, error)
      self._failed = True

  def sync(self):
    """Makes the lines survive a power cut: call it before a checkpoint that counts on them."""
    if self._handle is not None and not self._failed:
      os.fsync(self._handle)

  def close(self):
    if self._handle is not None:
      os.close(self._handle)
      self._handle = None


def read(path) -> list[dict]:
  """The records of a file, a torn last line apart, with "nan" and "inf" as floats again."""
  return [_revive(json.loads(line)) for line in _lines(path)]


def deterministic_lines(path) -> list[str]:
  """The lines without their wall-clock fields: equal for equal runs."""
  records = [json.loads(line) for line in _lines(path)]
  return [json.dumps({key: value for key, value in record.items() if key not in WALL_CLOCK}, separators=(",", ":"))
          for record in records]


def _lines(path):
  """The lines up to the last that holds an object; what follows it was torn by a kill (an object cut short is none)."""
  path = pathlib.Path(path)
  lines = path.read_bytes().split(b"\n") if path.exists() else []
  good = [_is_object(line) for line in lines]
  end = max((n + 1 for n, ok in enumerate(good) if ok), default=0)
  if not all(good[:end]):
    raise ValueError(f"{str(path)!r} line {good.index(False) + 1} is not a JSON object; mend or remove that line.")
  return lines[:end]


def _is_object(line):
  try:
    return isinstance(json.loads(line), dict)
  except (ValueError, RecursionError):
    return False


def _plain(value):
  if isinstance(value, dict):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if hasattr(value, "__array__"):  # of numpy or of jax
    return _plain(np.asarray(value).tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


def _revive(value):
  if isinstance(value, dict):
    return {key: _revive(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_revive(item) for item in value]
  return _SPECIAL.get(value, value) if isinstance(value, str) else value
