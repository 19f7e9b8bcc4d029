"""What an experiment's `measure` returns, kept: numbers for final.json, arrays in arrays.npz of the run for figures."""

import io
import pathlib

import numpy as np

from research import manifest

NAME = "arrays.npz"


def kept(out: pathlib.Path, found: dict) -> dict[str, float]:
  """Writes the arrays among the values, if there are any, and returns the numbers."""
  arrays = {k: np.asarray(v) for k, v in found.items() if np.ndim(v)}
  if arrays:
    data = io.BytesIO()
    np.savez(data, **arrays)
    manifest.write_atomically(out / NAME, data.getvalue())
  return {k: float(v) for k, v in found.items() if k not in arrays}


def read(out: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of a run; none if it left none."""
  path = out / NAME
  if not path.is_file():
    return {}
  with np.load(path) as data:
    return {k: data[k] for k in data.files}
