"""Text as records of bytes, wherever it comes from: three sources, one form.

`open_text` reads the standard library, a folder, or a prepared TFDS data set,
each through `tfds` array_record data sources, and returns for each split how to
read record r and how long the records are. Splits up to 256 MB are held in
memory and checked against the sha256 taken when they were written.
"""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import os
import pathlib

import numpy as np

from research.data import cache
from research.data import prepared
from research.data import stdlib_text
from research.data import text_files

_IN_MEMORY = 256 * 2**20  # bytes
_MEASURED = 2_000_000  # records; in a larger set the lengths are estimated
_SAMPLE = 1024  # records looked at for such an estimate


@dataclasses.dataclass(frozen=True)
class Records:
  """One split.

  Attributes:
    read: record number to its bytes, a uint8 array.
    count: number of records.
    lengths_R: bytes of each record, or None where there are too many to measure.
    mean: mean of the lengths, measured or estimated.
  """

  read: Callable[[int], np.ndarray]
  count: int
  lengths_R: np.ndarray | None
  mean: float


@dataclasses.dataclass(frozen=True)
class Text:
  """A text data set; `identity` is what a checkpoint remembers of it (JSON-able)."""

  train: Records
  validation: Records
  identity: dict


def _bytes(text: bytes) -> np.ndarray:
  return np.frombuffer(text, np.uint8)


def _verify(texts: list[dict], want: str, at: pathlib.Path) -> None:
  digest = hashlib.sha256()
  for record in texts:
    path, text = record["path"], record["text"]
    digest.update(b"%d %d " % (len(path), len(text)) + path + text)
  if digest.hexdigest() != want:
    raise ValueError(f"dataset in {os.fspath(at)!r} is not what was written there; "
                     "delete that folder and it is built again.")


def _records(source, key: str, lengths_R: np.ndarray | None, texts=None) -> Records:
  """Wraps a data source; `texts` are its records if they were read already."""
  if lengths_R is not None and lengths_R.sum() <= _IN_MEMORY:
    texts = texts or source.__getitems__(list(range(len(source))))
    held = [_bytes(record[key]) for record in texts]
    return Records(held.__getitem__, len(held), lengths_R, float(lengths_R.mean()))
  # A handful of long records serves many windows before the next is needed.
  read = functools.lru_cache(maxsize=64)(lambda r: _bytes(source[r][key]))
  if lengths_R is not None:
    return Records(read, len(source), lengths_R, float(lengths_R.mean()))
  sample = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int))
  return Records(read, len(source), None, float(np.mean([len(read(int(r))) for r in sample])))


def _own(at: pathlib.Path, content: dict) -> Text:
  """Opens what `text_files` wrote."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(os.fspath(at))
  splits = {}
  for split, lengths in content["lengths"].items():
    source = builder.as_data_source(split=split)
    texts = None
    if sum(lengths) <= _IN_MEMORY:
      texts = source.__getitems__(list(range(len(source))))
      _verify(texts, content["sha256"][split], at.parent.parent)
    splits[split] = _records(source, "text", np.array(lengths, np.int64), texts)
  identity = {"dataset": content["name"], "version": at.name,
              "records": {s: r.count for s, r in splits.items()},
              "bytes": {s: int(r.lengths_R.sum()) for s, r in splits.items()},
              "sha256": content["sha256"]}
  return Text(splits["train"], splits["validation"], identity)


def _text_key(builder, dataset: str) -> str:
  import tensorflow_datasets as tfds

  found = [k for k, f in builder.info.features.items() if isinstance(f, tfds.features.Text)]
  if "text" in found:
    return "text"
  if len(found) != 1:
    raise ValueError(f"dataset={dataset!r} has the text features {found}, not one called 'text'; "
                     "choose a text data set.")
  return found[0]


def _measure(source, key: str, name: str) -> np.ndarray | None:
  """Lengths of all records: one pass over the data, remembered in the cache."""
  if len(source) > _MEASURED:
    return None

  def build(into: pathlib.Path) -> None:
    lengths = np.fromiter((len(source[r][key]) for r in range(len(source))), np.int64)
    np.save(into / "lengths.npy", lengths, allow_pickle=False)

  at = cache.build_once(f"lengths-{hashlib.sha256(name.encode()).hexdigest()[:16]}", build)
  return np.load(at / "lengths.npy", allow_pickle=False)


def _by_name(dataset: str, data_dir: str, download: bool) -> Text:
  builder = prepared.open_prepared(dataset, data_dir, download)
  key = _text_key(builder, dataset)
  digest = prepared.digest(builder)
  splits = {}
  for split, tfds_split in prepared.split_names(builder, dataset).items():
    source = builder.as_data_source(split=tfds_split)
    if not len(source):
      raise ValueError(f"dataset={dataset!r} has no records in its split {tfds_split!r}.")
    splits[split] = _records(source, key, _measure(source, key, f"{digest} {tfds_split}"))
  identity = {"dataset": builder.info.full_name, "version": str(builder.version),
              "records": {s: r.count for s, r in splits.items()}, "sha256": digest}
  return Text(splits["train"], splits["validation"], identity)


def open_text(dataset: str = "stdlib", path: str = "", data_dir: str = "",
              download: bool = False) -> Text:
  """Opens a text data set, building it in the cache if it is files.

  Args:
    dataset: "stdlib" or the name of a TFDS text data set prepared as array_record.
    path: a folder (or one file) of text; if given, `dataset` is not looked at.
    data_dir: where the TFDS data lies; empty means where TFDS keeps it.
    download: whether a TFDS data set that is not there is fetched.

  Raises:
    ValueError: nothing to read there; the message says what to do.
  """
  if path:
    try:
      folder = pathlib.Path(os.path.expanduser(path)).resolve()
      files = text_files.listing(folder)
    except (OSError, ValueError, RuntimeError) as error:
      raise ValueError(f"path={path[:200]!r} cannot be read: {str(error)[:100]}.") from None
    if not files:
      state = "has no files" if folder.is_dir() else "is not there"
      raise ValueError(f"path={path[:200]!r} {state}; name a folder with text in it.")
    return _own(*text_files.open_files("text_folder", folder, files))
  if dataset == "stdlib":
    return _own(*stdlib_text.open_stdlib())
  return _by_name(dataset, data_dir, download)
