"""A cached folder is there whole or not at all, wherever the cache can be."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest

from research.data import cache

pytestmark = pytest.mark.usefixtures("own_cache")

# Writes one half, waits for the middle of somebody else's build, writes the other.
_BUILD = """
import os, signal, sys, time
from research.data import cache

def build(into):
  (into / "one").write_text("1")
  time.sleep(0.3)
  if sys.argv[1] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
  (into / "two").write_text("2")

print(cache.build_once("set", build))
"""


def _start(how):
  return subprocess.Popen([sys.executable, "-c", _BUILD, how], stdout=subprocess.PIPE, text=True,
                          cwd=pathlib.Path(cache.__file__).parents[2])


def _fill(into):
  (into / "one").write_text("1")


def test_two_builders_at_once_leave_one_whole_copy(own_cache):
  running = [_start("live") for _ in range(2)]
  said = [process.communicate()[0].strip() for process in running]
  assert said == [str(own_cache / "set")] * 2 and [p.returncode for p in running] == [0, 0]
  assert sorted(f.name for f in (own_cache / "set").iterdir()) == ["one", "two"]
  assert [f.name for f in own_cache.iterdir()] == ["set"]


def test_a_killed_build_is_not_taken_for_data(own_cache):
  killed = _start("die")
  killed.communicate()
  assert killed.returncode == -signal.SIGKILL
  left, = own_cache.iterdir()
  assert left.name.startswith("building-")
  assert cache.build_once("set", _fill) == own_cache / "set"
  os.utime(left, (0, 0))  # an hour later
  cache.build_once("other", _fill)
  assert sorted(f.name for f in own_cache.iterdir()) == ["other", "set"]


def test_a_build_that_fails_leaves_nothing(own_cache):
  def fail(into):
    _fill(into)
    raise RuntimeError("disk full")

  with pytest.raises(RuntimeError, match="disk full"):
    cache.build_once("set", fail)
  assert not list(own_cache.iterdir())


def test_what_is_there_is_not_built_again():
  cache.build_once("set", _fill)
  cache.build_once("set", lambda into: pytest.fail("built twice"))


def test_data_in_a_cache_that_cannot_be_written_is_found(own_cache, monkeypatch):
  cache.build_once("set", _fill)
  monkeypatch.setattr(cache, "_usable", lambda root: False)
  assert cache.build_once("set", lambda into: pytest.fail("built twice")) == own_cache / "set"


@pytest.mark.parametrize("broken", ["file", "proc"])
def test_a_cache_that_cannot_be_made_is_passed_over(tmp_path, monkeypatch, broken):
  (tmp_path / "file").write_text("")
  bad = {"file": tmp_path / "file" / "cache", "proc": pathlib.Path("/proc/strata")}[broken]
  monkeypatch.setenv("STRATA_CACHE", str(bad))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  assert cache.build_once("set", _fill) == tmp_path / "xdg" / "strata" / "set"


def test_without_a_home_the_cache_is_in_the_temporary_folder(tmp_path, monkeypatch):
  def homeless():
    raise RuntimeError("Could not determine home directory.")

  for name in ("STRATA_CACHE", "XDG_CACHE_HOME", "HOME"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(pathlib.Path, "home", homeless)
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  assert cache.build_once("set", _fill) == tmp_path / f"strata-{os.getuid()}" / "set"
