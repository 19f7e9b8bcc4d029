"""Opens a TFDS data set by name where somebody has prepared it, without TensorFlow.

Only what lies on disk is looked at, so the code that generated the data (often
in need of TensorFlow or a network) is never imported: `features.json` says how
to decode a record. Records must be array_record or parquet, because the default
format, TFRecord, cannot be read without TensorFlow.
"""

import hashlib
import os
import pathlib
import re

_NAME = re.compile(r"[a-zA-Z0-9_]{1,100}(/(?!\.)[\w.+-]{1,100})?(:\d+\.\d+\.\d+)?", re.ASCII)
_FORMATS = ("array_record", "parquet")


def check_name(dataset: str) -> None:
  """Raises ValueError unless `dataset` is NAME, NAME/CONFIG or either with :VERSION."""
  if not _NAME.fullmatch(dataset):
    raise ValueError(f"dataset={dataset[:200]!r} is not a TFDS name; "
                     "write NAME, NAME/CONFIG or NAME:1.2.3.")


def data_root(data_dir: str) -> pathlib.Path:
  """`data_dir`, or where TFDS keeps its data if that is empty."""
  default = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
  return pathlib.Path(os.path.expanduser(data_dir or default))


def _how_to_get(dataset: str, data_dir: pathlib.Path) -> str:
  return (f"download=true fetches it, or prepare it with: python -c \"import tensorflow_datasets as tfds; "
          f"tfds.builder({dataset!r}, data_dir={os.fspath(data_dir)!r}, "
          "file_format='array_record').download_and_prepare()\" "
          "(needs a network, and for some data sets TensorFlow)")


def _newest(folder: pathlib.Path, wanted: str) -> pathlib.Path | None:
  versions = [at for at in folder.glob("*.*.*")
              if re.fullmatch(r"\d+\.\d+\.\d+", at.name) and (at / "features.json").is_file()
              and wanted in ("", at.name)]
  return max(versions, key=lambda at: tuple(map(int, at.name.split("."))), default=None)


def _find(folder: pathlib.Path, wanted: str) -> pathlib.Path | None:
  try:
    return _newest(folder, wanted)
  except (OSError, ValueError):
    return None


def _check_classes(at: pathlib.Path, dataset: str) -> None:
  # TFDS imports whatever class a features.json names; a data folder is not code.
  features = (at / "features.json").read_text("utf-8")
  for name in re.findall(r'"pythonClassName"\s*:\s*"([^"]*)"', features):
    if not re.fullmatch(r"tensorflow_datasets\.core\.features\.[\w.]+", name, re.ASCII):
      raise ValueError(f"dataset={dataset!r} in {os.fspath(at)!r} wants the class {name[:100]!r} "
                       "to decode it; only tensorflow_datasets.core.features are trusted.")


def _download(dataset: str, root: pathlib.Path) -> None:
  """Prepares a data set as array_record from the network, with the builder that TFDS has for it."""
  import tensorflow_datasets as tfds

  try:
    tfds.builder(dataset, data_dir=os.fspath(root), file_format="array_record").download_and_prepare()
  except Exception as error:  # a missing TensorFlow, network, disk or data set: each raises its own
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    raise ValueError(f"dataset={dataset!r} could not be prepared in {os.fspath(root)!r} ({reason}); "
                     "prepare it on a machine that can and name the folder in data_dir.") from error


def open_prepared(dataset: str, data_dir: str = "", download: bool = False):
  """A TFDS builder for the prepared data set.

  Args:
    dataset: NAME, NAME/CONFIG, with :VERSION if it is not to be the newest.
    data_dir: TFDS data folder; empty means $TFDS_DATA_DIR or ~/tensorflow_datasets.
    download: whether a data set that is not there is fetched and prepared.

  Raises:
    ValueError: not there, or stored in a format that needs TensorFlow (the
      message has the command that prepares it), or in need of foreign code.
  """
  check_name(dataset)
  root = data_root(data_dir)
  path, _, version = dataset.partition(":")
  at = _find(root / path, version)
  if at is None and download:
    _download(dataset, root)
    at = _find(root / path, version)
  if at is None:
    raise ValueError(f"dataset={dataset!r} is not prepared in {os.fspath(root)!r}; "
                     f"{_how_to_get(dataset, root)}.")
  _check_classes(at, dataset)
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(os.fspath(at))
  stored = builder.info.file_format.value
  if stored not in _FORMATS:
    raise ValueError(f"dataset={dataset!r} in {os.fspath(at)!r} is stored as {stored}, which "
                     f"cannot be read without TensorFlow; remove it and "
                     f"{_how_to_get(dataset, root)}.")
  return builder


def split_names(builder, dataset: str) -> dict[str, str]:
  """Which TFDS split serves as train and which as validation.

  The set's own validation split comes first, then its test split; a set with a
  train split alone gives its last 5 %.
  """
  have = builder.info.splits
  if "train" not in have:
    raise ValueError(f"dataset={dataset!r} has the splits {sorted(have)} and no 'train'; "
                     "choose another data set.")
  for held_out in ("validation", "test"):
    if held_out in have and have[held_out].num_examples:
      return {"train": "train", "validation": held_out}
  return {"train": "train[:95%]", "validation": "train[95%:]"}


def digest(builder) -> str:
  """sha256 over the set's description and the names and sizes of its files."""
  at = pathlib.Path(builder.data_dir)
  total = hashlib.sha256()
  for file in sorted(at.iterdir()):
    total.update(f"{file.name} {file.stat().st_size}\n".encode())
    if file.suffix == ".json":
      total.update(file.read_bytes())
  return total.hexdigest()
