"""Writes files of text into a TFDS data set (array_record), split by file.

One record per file, {"path", "text"}, in the order of the paths. Which split a
file belongs to is a hash of its path, so a file keeps its side when others come
and go; about 5 % are validation. A file with more than 2.5 % of all bytes is
always for training: validation is to be many files, not one. Beside the records
lies `content.json`: record lengths and a sha256 over all paths and texts, which
is what a checkpoint remembers of the data. None of it needs TensorFlow.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import stat
from typing import Any

from research.data import cache

VALIDATION = 0.05  # fraction of the files
FORMAT = 1  # of what is written; a new number makes every cached copy stale
_SNIFF = 8192  # bytes read to tell text from binary
_CHUNKS = 20  # pieces that a lone file is cut into, at least
_CHUNK = 65_536  # bytes of such a piece, at most


@dataclasses.dataclass(frozen=True)
class Piece:
  """Bytes [start, start + size) of a file, known to the data set as `path`."""

  path: str
  file: str
  start: int
  size: int


def fraction(path: str) -> float:
  """A number in [0, 1) that depends on `path` and nothing else."""
  digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
  return int.from_bytes(digest[:6]) / 2**48


def listing(folder: pathlib.Path, left_out: frozenset[str] = frozenset()) -> list[tuple[str, int, int]]:
  """(relative path, bytes, mtime in ns) of every regular file, sorted by path.

  Hidden files and folders, `__pycache__`, folders with a name in `left_out` and
  empty files are left out; links to folders are not followed. `folder` may be a
  single file.
  """
  if folder.is_file():
    status = folder.stat()
    return [(folder.name, status.st_size, status.st_mtime_ns)] if status.st_size else []
  found = []
  for at, folders, names in os.walk(folder):
    folders[:] = [f for f in folders if not f.startswith(".") and f != "__pycache__" and f not in left_out]
    for name in names:
      with contextlib.suppress(FileNotFoundError):  # a link to nowhere
        status = os.stat(os.path.join(at, name))
        if not name.startswith(".") and stat.S_ISREG(status.st_mode) and status.st_size:
          relative = os.path.relpath(os.path.join(at, name), folder)
          found.append((relative.replace(os.sep, "/"), status.st_size, status.st_mtime_ns))
  return sorted(found)


def is_text(file: str) -> bool:
  """Whether the beginning of the file has no NUL byte."""
  with open(file, "rb") as f:
    return b"\0" not in f.read(_SNIFF)


def split(pieces: list[Piece]) -> dict[str, list[Piece]]:
  """Deals whole files to train and validation, and a lone file by position."""
  if len(pieces) == 1:
    whole = pieces[0]
    n = max(_CHUNKS, -(-whole.size // _CHUNK))
    cuts = [whole.size * i // n for i in range(n + 1)]
    chunks = [Piece(f"{whole.path}[{a}:{b}]", whole.file, a, b - a) for a, b in zip(cuts, cuts[1:])]
    middle = [i % _CHUNKS == _CHUNKS // 2 for i in range(n)]
    held_out = {chunk for chunk, m in zip(chunks, middle) if m}
    pieces = chunks
  else:
    goal = VALIDATION * sum(piece.size for piece in pieces)
    held_out = {p for p in pieces if fraction(p.path) < VALIDATION and p.size <= goal / 2}
    if pieces and len(held_out) in (0, len(pieces)):
      # Too few files for the hash to hit 5 %: take the one nearest to that size.
      held_out = {min(pieces, key=lambda p: (abs(p.size - goal), p.path))}
  return {"train": [p for p in pieces if p not in held_out],
          "validation": [p for p in pieces if p in held_out]}


def builder(splits: dict[str, Iterator[dict[str, Any]]], data_dir: pathlib.Path, name: str):
  """A TFDS builder of `{"path", "text"}` records for the given iterators."""
  import tensorflow_datasets as tfds

  class Info(tfds.core.DatasetInfo):

    def initialize_from_bucket(self):
      """Looks nowhere: no bucket in the network knows these files."""

  class Text(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Files of text, one per record."""

    VERSION = tfds.core.Version(f"{FORMAT}.0.0")
    url_infos = {}  # nothing to download; looking it up needs a package of its own

    def _info(self):
      features = {"path": tfds.features.Text(), "text": tfds.features.Text()}
      return Info(builder=self, disable_shuffling=True,
                  features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return splits

    def _generate_examples(self):
      raise NotImplementedError("the splits come with the builder")

  Text.name = name
  return Text(data_dir=os.fspath(data_dir), file_format="array_record")


def prepare(tfds_builder) -> None:
  """Runs a builder silently and without looking for a network."""
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    tfds_builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def _read(piece: Piece) -> bytes:
  with open(piece.file, "rb") as f:
    f.seek(piece.start)
    return f.read(piece.size)


def _records(pieces: list[Piece], digest, lengths: list[int]):
  for i, piece in enumerate(pieces):
    text = _read(piece)
    path = piece.path.encode("utf-8", "surrogateescape")
    digest.update(b"%d %d " % (len(path), len(text)) + path + text)
    lengths.append(len(text))
    yield i, {"path": path, "text": text}


def write(pieces: list[Piece], into: pathlib.Path, name: str) -> None:
  """Writes the data set `name` and its `content.json` into a folder."""
  splits = split(pieces)
  digests = {s: hashlib.sha256() for s in splits}
  lengths = {s: [] for s in splits}
  prepare(builder({s: _records(p, digests[s], lengths[s]) for s, p in splits.items()}, into, name))
  content = {"name": name, "lengths": lengths,
             "sha256": {s: digest.hexdigest() for s, digest in digests.items()}}
  (into / "content.json").write_text(json.dumps(content))


def open_files(name: str, folder: pathlib.Path, files: list[tuple[str, int, int]], keep=is_text):
  """The data set of a list of files, from the cache or built now.

  Args:
    name: TFDS name of the data set.
    folder: what the paths are relative to.
    files: as `listing` gives them; any change makes it another data set.
    keep: whether a file, named by its full path, is to be read.

  Returns:
    (folder of the TFDS data set, what `content.json` says).

  Raises:
    ValueError: hardly any text, or a file that cannot be read.
  """
  key = hashlib.sha256(json.dumps([FORMAT, VALIDATION, os.fspath(folder), files]).encode())
  within = (lambda path: os.fspath(folder)) if folder.is_file() else folder.joinpath

  def build(into: pathlib.Path) -> None:
    paths = [(path, os.fspath(within(path)), size) for path, size, _ in files]
    try:
      pieces = [Piece(path, file, 0, size) for path, file, size in paths if keep(file)]
    except OSError as error:
      raise ValueError(f"path={os.fspath(folder)!r}: cannot read {error.filename!r} "
                       f"({error.strerror}); move it away or allow reading it.") from None
    if sum(piece.size for piece in pieces) < 2 * _CHUNKS:
      raise ValueError(f"path={os.fspath(folder)!r} holds {len(pieces)} text files with fewer than "
                       f"{2 * _CHUNKS} bytes in all; name a folder with some text in it.")
    write(pieces, into, name)

  at = cache.build_once(f"{name}-{key.hexdigest()[:16]}", build)
  content = json.loads((at / "content.json").read_text())
  return at / name / f"{FORMAT}.0.0", content
