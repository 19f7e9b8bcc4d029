"""Labelled images: scikit-learn's digits, or a prepared TFDS image set.

Images come as float32 in [0, 1]; which example is number i never changes. A TFDS
image is decoded when it is first asked for and kept while 256 MB hold it.
"""

from collections.abc import Callable
import dataclasses
import functools
import hashlib

import numpy as np

from research.data import prepared

# Dims: H height, W width, C channels.

_IN_MEMORY = 256 * 2**20  # bytes
_TRAIN = 0.8  # fraction of the digits


@dataclasses.dataclass(frozen=True)
class Examples:
  """One split: `read(i)` is (image_HWC float32, label), for i < count."""

  read: Callable[[int], tuple[np.ndarray, int]]
  count: int


@dataclasses.dataclass(frozen=True)
class Images:
  """An image data set; `identity` is what a checkpoint remembers of it (JSON-able)."""

  train: Examples
  validation: Examples
  shape: tuple[int, int, int]
  classes: int
  identity: dict


def _digits() -> Images:
  """1,797 handwritten digits, 8 x 8, dealt 80 / 20 by a fixed permutation."""
  from sklearn.datasets import load_digits

  digits = load_digits()
  images_NHWC = (digits.images / 16.0).astype(np.float32)[..., None]
  labels_N = digits.target.astype(np.int32)
  order_N = np.random.default_rng(0).permutation(len(labels_N))
  cut = round(_TRAIN * len(order_N))
  chosen = {"train": order_N[:cut], "validation": order_N[cut:]}

  def examples(split):
    picked = chosen[split]
    return Examples(lambda i: (images_NHWC[picked[i]], int(labels_N[picked[i]])), len(picked))

  content = hashlib.sha256(images_NHWC.tobytes() + labels_N.tobytes() + order_N.tobytes())
  identity = {"dataset": "digits", "version": "1.0.0",
              "records": {s: len(p) for s, p in chosen.items()}, "sha256": content.hexdigest()}
  return Images(examples("train"), examples("validation"), images_NHWC.shape[1:], 10, identity)


def _reader(source, keep: int) -> Callable[[int], tuple[np.ndarray, int]]:
  held = functools.lru_cache(maxsize=keep)(source.__getitem__)

  def read(i: int) -> tuple[np.ndarray, int]:
    record = held(i)
    return record["image"].astype(np.float32) / 255, int(record["label"])

  return read


def _by_name(dataset: str, data_dir: str, download: bool) -> Images:
  builder = prepared.open_prepared(dataset, data_dir, download)
  import tensorflow_datasets as tfds

  features = dict(builder.info.features)
  image, label = features.get("image"), features.get("label")
  if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
    raise ValueError(f"dataset={dataset!r} has the features {sorted(features)}, not an image and a "
                     "class label; choose a data set for classification.")
  if None in image.shape or image.np_dtype != np.uint8:
    raise ValueError(f"dataset={dataset!r} has images of {image.np_dtype} {image.shape}; one fixed "
                     "size and uint8 are needed, choose another data set.")
  keep = _IN_MEMORY // int(np.prod(image.shape))
  splits = {}
  for split, tfds_split in prepared.split_names(builder, dataset).items():
    source = builder.as_data_source(split=tfds_split)
    if not len(source):
      raise ValueError(f"dataset={dataset!r} has no records in its split {tfds_split!r}.")
    splits[split] = Examples(_reader(source, keep), len(source))
  identity = {"dataset": builder.info.full_name, "version": str(builder.version),
              "records": {s: e.count for s, e in splits.items()},
              "sha256": prepared.digest(builder)}
  return Images(splits["train"], splits["validation"], tuple(image.shape), label.num_classes,
                identity)


def open_images(dataset: str = "digits", data_dir: str = "", download: bool = False) -> Images:
  """Opens "digits" or a TFDS image data set prepared as array_record.

  Raises:
    ValueError: nothing to read there, or not images of one size with a class.
  """
  return _digits() if dataset == "digits" else _by_name(dataset, data_dir, download)
