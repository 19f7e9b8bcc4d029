"""The command and the config of a run that lasts seconds."""

import contextlib
import io
import os
import pathlib
import tempfile

import jax
import pytest

from pallas_kernels import compat
from research import config as configs
from research import run

# Kept between tests, like the cache of tests/conftest.py: most of a toy run is compilation.
CACHE = os.environ.get("STRATA_CACHE", os.path.join(tempfile.gettempdir(), "strata-test"))
# Of processes that a test starts; a toy run is compiled at leisure and computed in no time.
FLAGS = f"--xla_backend_optimization_level=0 {compat.QUICK_COMPILES}".strip()
FILE = str(pathlib.Path(__file__).with_name("toy_experiment.py"))


def config(**overrides):
  """Returns the toy config; a dot in a key is written as two underscores."""
  made = configs.load(FILE)[2]
  configs.override(made, {key.replace("__", "."): value for key, value in overrides.items()})
  return made


def main(*argv, file=FILE) -> tuple[int, str, str]:
  """Runs the command in this process; returns (exit code, stdout, stderr)."""
  said, errors, cache = io.StringIO(), io.StringIO(), jax.config.jax_compilation_cache_dir
  try:
    with (contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors),
          pytest.MonkeyPatch.context() as patch):
      patch.setenv("STRATA_CACHE", CACHE)
      code = run.main([f"--config={file}", *map(str, argv)])
  finally:
    jax.config.update("jax_compilation_cache_dir", cache)  # what the command sets for its process
  return code, said.getvalue(), errors.getvalue()
