"""Text to read and a cache of one's own, for the tests of data and tasks; one device for those of runs."""

import jax
import numpy as np
import pytest

from research import sharding


@pytest.fixture(scope="module")
def one_device():
  """Of the eight devices of tests/conftest.py one, to the end of the file: splitting a toy over them is slow to compile."""
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape([1] * 5), sharding.AXES)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "mesh_of", lambda config: mesh)
    yield


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
  """An empty cache, so that a test neither sees nor leaves built data."""
  monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
  """Sixty text files with lengths from 1 byte to 3 kB, in two folders."""
  draw = np.random.default_rng(0)
  for i in range(60):
    at = tmp_path / "text" / ("deep" if i % 3 else ".") / f"file_{i:02}.txt"
    at.parent.mkdir(parents=True, exist_ok=True)
    words = draw.integers(97, 123, max(1, int(1.14**i)), np.uint8)
    at.write_bytes(words.tobytes())
  return tmp_path / "text"
