"""What a run used of the machine: compilations, memory, and what the machine is."""

import os
import platform
import resource
import subprocess
import sys

import jax

from pallas_kernels import processor

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compiles:
  """Counts compilations in this process from its creation on."""

  def __init__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._heard)

  def _heard(self, event, duration, **_):
    self.count += event == _COMPILED


def peak_memory_gb() -> float:
  """Returns the largest resident size that this process had, in GB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def environment() -> dict:
  """Returns versions, devices and source revision, for env.json."""
  import flax
  import optax
  from research import find
  git = lambda *args: subprocess.run(
      ["git", "-C", str(find.ROOT), *args], capture_output=True, text=True, check=False).stdout.strip()
  return {
      "python": sys.version.split()[0], "jax": jax.__version__, "flax": flax.__version__,
      "optax": optax.__version__, "platform": platform.platform(), "cpus": os.cpu_count(), "cpu": processor.name(),
      "devices": [d.device_kind for d in jax.devices()], "processes": jax.process_count(),
      "xla_flags": os.environ.get("XLA_FLAGS", ""),
      "commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain")),
  }
