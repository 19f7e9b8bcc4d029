"""Image classification, the image as a sequence of pixels or of patches."""

import dataclasses
import functools
from typing import ClassVar

import grain
import numpy as np

from research import losses
from research.data import images as image_data
from research.data import prepared
from research.tasks import fields

# Dims: B batch, T tokens, H height, W width, C channels, P patch side, D values per token.


def tokens(images_BHWC: np.ndarray, patch: int) -> np.ndarray:
  """Cuts images into patches, row by row: [B, H/P * W/P, P*P*C]."""
  B, H, W, C = images_BHWC.shape
  grid = images_BHWC.reshape(B, H // patch, patch, W // patch, patch, C)
  return grid.swapaxes(2, 3).reshape(B, H * W // patch**2, patch**2 * C)


def scrambled(count: int) -> np.ndarray:
  """Returns the one order in which permuted images of `count` tokens are read."""
  return np.random.default_rng(0).permutation(count)


@dataclasses.dataclass(frozen=True)
class Images:
  """Which class an image belongs to.

  Attributes:
    dataset: "digits" (1,797 images of 8 x 8, comes with scikit-learn) or a TFDS
      image data set that is prepared as array_record, such as mnist or cifar10.
    data_dir: TFDS data folder; empty means where TFDS keeps its data.
    download: whether a TFDS data set that is not there is fetched and prepared.
    layout: "pixels" makes a token of every pixel, "patches" of every patch.
    patch: side of a patch, in pixels; not looked at for pixels.
    permuted: whether tokens come in one scrambled order, the same for every image and
      every seed, in which neighbours are far apart.
    batch_size: images over all hosts.
    seed: of the order of the data.
  """

  on_device: ClassVar[bool] = False

  dataset: str = "digits"
  data_dir: str = ""
  download: bool = False
  layout: str = "pixels"
  patch: int = 2
  permuted: bool = False
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    fields.words("dataset", self.dataset, "it names a data set")
    fields.words("data_dir", self.data_dir, "it names a folder")
    fields.one_of("download", self.download, (False, True))
    prepared.check_name(self.dataset)
    fields.one_of("layout", self.layout, ("pixels", "patches"))
    fields.whole("patch", self.patch, 1, 2**12, "it is the side of a patch in pixels")
    fields.one_of("permuted", self.permuted, (False, True))
    fields.batch(self.batch_size, self.seed, 64)

  @functools.cached_property
  def _images(self) -> image_data.Images:
    images = image_data.open_images(self.dataset, self.data_dir, self.download)
    H, W, C = images.shape
    if self.layout == "patches" and (H % self.patch or W % self.patch):
      raise ValueError(f"patch={self.patch} must divide the {H} x {W} pixels of {self.dataset!r}.")
    fields.whole("batch_size", self.batch_size, 1, fields.PLACES // (H * W * C),
                 f"it counts images of {H * W * C} numbers over all hosts")
    return images

  @functools.cached_property
  def _order(self) -> grain.MapDataset:
    return grain.MapDataset.range(self._images.train.count).seed(self.seed).shuffle().repeat()

  def batches(self, split: str) -> int:
    """Batches after which every image of the split was met once."""
    return -(-getattr(self._images, split).count // self.batch_size)

  def batch(self, split, step, rows=slice(None)) -> dict[str, np.ndarray]:
    """Rows of batch `step`; after `batches("validation")` validation begins anew."""
    step = fields.cursor(split, step)
    examples = getattr(self._images, split)
    index_B = step * self.batch_size + np.arange(self.batch_size)[rows]
    weights_B = np.ones(len(index_B), np.float32)
    if split == "train":
      index_B = [self._order[int(i)] for i in index_B]
    else:
      # The last batch of a pass is filled up with images that count for nothing.
      index_B %= self.batches(split) * self.batch_size
      weights_B = (index_B < examples.count).astype(np.float32)
      index_B = np.where(weights_B > 0, index_B, 0)
    images_BHWC = np.zeros((len(index_B), *self._images.shape), np.float32)
    labels_B = np.zeros(len(index_B), np.int32)
    for b, i in enumerate(index_B):
      images_BHWC[b], labels_B[b] = examples.read(int(i))
    inputs_BTD = tokens(images_BHWC, self.patch if self.layout == "patches" else 1)
    if self.permuted:
      inputs_BTD = inputs_BTD[:, scrambled(inputs_BTD.shape[1])]
    return {"inputs": inputs_BTD, "labels": labels_B, "weights": weights_B}

  def loss(self, outputs, batch):
    """Cross-entropy and accuracy of logits [B, classes]."""
    args = outputs, batch["labels"], batch["weights"]
    return losses.cross_entropy(*args), {"accuracy": losses.accuracy(*args)}

  def model_fields(self) -> dict[str, int]:
    return {"classes": self._images.classes}

  def fingerprint(self) -> dict:
    """Identity of the data and of its order."""
    order = [int(self._order[i]) for i in range(8)]
    return self._images.identity | {"batch_size": self.batch_size, "seed": self.seed,
                                    "order": order, "permuted": self.permuted}
