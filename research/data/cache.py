"""Where prepared data lies, and how it gets there whole or not at all.

A data set is built in a folder of its own beside its final place and then
renamed, which the file system does at once: readers see all of it or nothing,
a killed build leaves only a folder that the next build removes, and when two
processes build the same thing the second one to finish discards its copy.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import shutil
import tempfile
import time

_STALE = 3600.0  # seconds after which an unfinished build is taken for dead


def _home() -> Iterator[pathlib.Path]:
  # A user without HOME and without a passwd entry has no home at all.
  with contextlib.suppress(RuntimeError):
    yield pathlib.Path.home()


def roots() -> list[pathlib.Path]:
  """Cache folders in order of preference, whether or not they can be used.

  Returns:
    $STRATA_CACHE, $XDG_CACHE_HOME/strata, ~/.cache/strata and a folder of the
    user's own in the system's temporary folder, without those that are unset.
  """
  found = []
  if os.environ.get("STRATA_CACHE"):
    found.append(pathlib.Path(os.environ["STRATA_CACHE"]))
  if os.environ.get("XDG_CACHE_HOME"):
    found.append(pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "strata")
  found += [home / ".cache" / "strata" for home in _home()]
  return found + [pathlib.Path(tempfile.gettempdir()) / f"strata-{os.getuid()}"]


def _usable(root: pathlib.Path) -> bool:
  try:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    # A folder of this name in a shared /tmp may be someone else's trap.
    return root.stat().st_uid in (os.getuid(), 0) and os.access(root, os.W_OK | os.X_OK)
  except OSError:
    return False


def writable_root() -> pathlib.Path:
  """The first of `roots` that can be written, made if need be."""
  for root in roots():
    if _usable(root):
      return root
  return pathlib.Path(tempfile.mkdtemp(prefix="strata-"))


def _remove_dead_builds(root: pathlib.Path) -> None:
  for left in root.glob("building-*"):
    with contextlib.suppress(OSError):
      if time.time() - left.stat().st_mtime > _STALE:
        shutil.rmtree(left, ignore_errors=True)


def build_once(name: str, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
  """Returns the folder `name` of the cache, building it if it is not there.

  Args:
    name: folder name; two data sets that differ must differ in it.
    build: fills the empty folder that it is given.
  """
  for root in roots():  # one that cannot be written may still hold the data
    with contextlib.suppress(OSError):
      if (root / name).is_dir():
        return root / name
  root = writable_root()
  _remove_dead_builds(root)
  aside = pathlib.Path(tempfile.mkdtemp(prefix="building-", dir=root))
  try:
    build(aside)
    try:
      aside.rename(root / name)
    except OSError:
      if not (root / name).is_dir():  # else another process was faster
        raise
  finally:
    shutil.rmtree(aside, ignore_errors=True)
  return root / name
