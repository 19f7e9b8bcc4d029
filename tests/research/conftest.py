"""Text to read and a cache of one's own, for the tests of data and tasks."""

import numpy as np
import pytest


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
