"""Settings of the whole suite: strict shapes, a shared compilation cache, a quiet CPU."""

import gc
import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax  # noqa: E402

from pallas_kernels import compat  # noqa: E402

# Read when the first computation starts. Tests compile much and compute little.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
                      + compat.QUICK_COMPILES)
jax.config.update("jax_numpy_rank_promotion", "raise")
_cache = pathlib.Path(os.environ.get("STRATA_CACHE", tempfile.gettempdir())) / "strata-test-xla"
jax.config.update("jax_compilation_cache_dir", str(_cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Tracing makes millions of objects that live long: looking for cycles among them took 6 to 18 % of a file's time.
gc.set_threshold(100_000, 50, 100)

# The files that last longest. pytest-xdist would begin with those of most tests, and end with one core at work.
LONGEST = ("run_test", "mixer_test", "sweep_test", "diagnostics_test", "golden_test", "chunk_recurrence_test", "fuzz_test",
           "diverged_test", "growth_test", "seeds_test", "match_test", "expert_mesh_test", "routing_profile_test",
           "kill_test", "tpu_aot_test", "devices_test", "diag_scan_test")


def pytest_configure(config):
  config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
  rank = {name: n for n, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))
