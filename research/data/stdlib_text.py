"""Real text that every machine has: the running Python's standard library.

All sources below the stdlib folder that are UTF-8, about 800 files and 12 MB,
without installed packages and without the `test` folders, which repeat
themselves. Each interpreter has its own copy in the cache, because another
version is another text.
"""

import os
import pathlib
import platform
import sys
import sysconfig

from research.data import text_files

_OUT = frozenset(("site-packages", "dist-packages", "test", "tests", "idle_test"))


def version() -> str:
  """The interpreter and its version, for instance "cpython-3.11.7"."""
  return f"{sys.implementation.name}-{platform.python_version()}"


def _is_utf8(file: str) -> bool:
  try:
    pathlib.Path(file).read_text(encoding="utf-8")
  except UnicodeDecodeError:
    return False
  return True


def files(folder: pathlib.Path) -> list[tuple[str, int, int]]:
  """The library's own sources below `folder`, as `text_files.listing` gives them."""
  # Installed packages may be a hundred times as many files: their folders are not even walked through.
  return [entry for entry in text_files.listing(folder, _OUT) if entry[0].endswith(".py")]


def open_stdlib():
  """The data set, built on first use; as `text_files.open_files` returns it.

  Raises:
    ValueError: this Python has no sources, for instance because they are zipped.
  """
  folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
  found = files(folder)
  if not found:
    raise ValueError(f"dataset='stdlib': no Python sources below {os.fspath(folder)!r}; "
                     "train on a folder of your own with task.path=FOLDER.")
  name = "stdlib_" + "".join(c if c.isalnum() else "_" for c in version().lower())
  return text_files.open_files(name, folder, found, keep=_is_utf8)
