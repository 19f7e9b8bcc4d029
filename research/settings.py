"""Settings of a whole process: devices, distribution, compilation cache, memory pages.

The one module that changes global settings of jax; commands call it first.
"""

import os
import sys


def prepare(*, fake_devices: int = 0, distributed: bool = False, only_trace: bool = False) -> None:
  """Sets up jax; to be called before anything asks for a device.

  Args:
    fake_devices: splits the CPU into so many, 0 leaves the devices as they are.
    distributed: joins the other processes of a cluster.
    only_trace: this process computes nothing, and leaves accelerators to its children.
  """
  if fake_devices:
    os.environ["JAX_PLATFORMS"] = "cpu"
    flag = f"--xla_force_host_platform_device_count={fake_devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
  # Grain and orbax log through absl, which writes to the terminal unless told otherwise.
  from absl import logging
  logging.set_verbosity(logging.ERROR)
  import jax
  if only_trace:
    jax.config.update("jax_platforms", "cpu")
  if distributed:
    jax.distributed.initialize()
  from research.data import cache
  jax.config.update("jax_compilation_cache_dir", str(cache.writable_root() / "xla"))


def ask_for_huge_pages() -> None:
  """Starts this command anew with glibc told to back its heap by huge pages; its children inherit that.

  XLA takes and returns tens of megabytes at every step on a CPU, and each 4 KB page of
  it is a fault. Measured 2026-11-21 on 2 AMD EPYC cores: main job, 207 to 218 ms a step
  with huge pages, 256 to 279 ms without; recall at width 64 on one core, 66 and 193 ms.
  glibc reads the setting only when a process starts.
  """
  asked = os.environ.get("GLIBC_TUNABLES", "")
  if sys.platform == "linux" and "glibc.malloc.hugetlb" not in asked:
    tunables = ":".join(filter(None, [asked, "glibc.malloc.hugetlb=1"]))
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": tunables})
