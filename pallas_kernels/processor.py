"""What the processor of this machine calls itself; jax only knows it as cpu."""

import pathlib
import platform


def name() -> str:
  """Returns the model, or the architecture where the system does not tell."""
  path = pathlib.Path("/proc/cpuinfo")
  lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
  return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
