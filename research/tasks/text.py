"""Next-byte prediction on real text: the standard library, a folder, or a TFDS set."""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from research import losses
from research.data import ngram
from research.data import prepared
from research.data import text as text_data
from research.data import windows
from research.tasks import fields

# Dims: B batch, T tokens.


@dataclasses.dataclass(frozen=True)
class Bytes:
  """Bytes as tokens; the loss is in nats per byte.

  Attributes:
    dataset: "stdlib" (sources of the running Python) or a TFDS text data set
      that is prepared as array_record.
    path: a folder, or a file, of text to read instead of `dataset`.
    data_dir: TFDS data folder; empty means where TFDS keeps its data.
    download: whether a TFDS data set that is not there is fetched and prepared.
    tokens: length of a sequence, in bytes.
    batch_size: sequences over all hosts.
    seed: of the order of the data.
  """

  on_device: ClassVar[bool] = False

  dataset: str = "stdlib"
  path: str = ""
  data_dir: str = ""
  download: bool = False
  tokens: int = 256
  batch_size: int = 16
  seed: int = 0

  def __post_init__(self):
    fields.words("dataset", self.dataset, "it names a data set")
    fields.words("path", self.path, "it names a folder")
    fields.words("data_dir", self.data_dir, "it names a folder")
    fields.one_of("download", self.download, (False, True))
    if not self.path:
      prepared.check_name(self.dataset)
    fields.whole("tokens", self.tokens, 1, 2**24, "it is the length of a sequence in bytes")
    fields.batch(self.batch_size, self.seed, self.tokens)

  @functools.cached_property
  def _text(self) -> text_data.Text:
    text = text_data.open_text(self.dataset, self.path, self.data_dir, self.download)
    for split in ("train", "validation"):
      records = getattr(text, split)
      places = int(records.count * max(records.mean - 1, 0))
      if places < self.tokens:
        raise ValueError(f"tokens={self.tokens} is more than the {places} bytes that {split} has "
                         f"in {self.path or self.dataset!r:.200}; use fewer tokens or more text.")
    return text

  @functools.cached_property
  def _rows(self):
    return {"train": windows.training_rows(self._text.train, self.tokens, self.seed),
            "validation": windows.validation_rows(self._text.validation, self.tokens)}

  @functools.cached_property
  def _packed(self) -> bool:
    # One answer for both splits, so that a batch has the same keys in each.
    return any(windows.pieces_per_row(r, self.tokens) > 1
               for r in (self._text.train, self._text.validation))

  def batches(self, split: str) -> int:
    """Batches after which every window of the split was read once."""
    records, rows = getattr(self._text, split), self._rows[split]
    if split == "train":
      rows = windows.validation_rows(records, self.tokens)
    return -(-len(rows) // self.batch_size)

  def batch(self, split, step, rows=slice(None)) -> dict[str, np.ndarray]:
    """Rows of batch `step`; after `batches("validation")` validation begins anew."""
    step = fields.cursor(split, step)
    source = self._rows[split]
    index_B = step * self.batch_size + np.arange(self.batch_size)[rows]
    real_B = np.ones(len(index_B), bool)
    if split == "validation":
      # The last batch of a pass is filled up with rows that count for nothing.
      index_B %= self.batches(split) * self.batch_size
      real_B = index_B < len(source)
      index_B = np.where(real_B, index_B, 0)
    block_B3T = np.zeros((len(index_B), 3, self.tokens), np.int32)
    for b, i in enumerate(index_B):
      block_B3T[b] = source[int(i)]
    segment_BT = np.where(real_B[:, None], block_B3T[:, 2], -1)
    batch = {"inputs": block_B3T[:, 0], "labels": block_B3T[:, 1],
             "weights": (segment_BT >= 0).astype(np.float32)}
    return batch | {"segment_ids": segment_BT} if self._packed else batch

  def loss(self, outputs, batch):
    """Cross-entropy in nats, and accuracy, of logits [B, T, 256]."""
    args = outputs, batch["labels"], batch["weights"]
    return losses.cross_entropy(*args), {"accuracy": losses.accuracy(*args)}

  def model_fields(self) -> dict[str, int]:
    return {"vocab": 256}

  def fingerprint(self) -> dict:
    """Identity of the data and of its order."""
    order = windows.order_digest(self._text.train, self.tokens, self.seed)
    return self._text.identity | {"tokens": self.tokens, "batch_size": self.batch_size,
                                  "seed": self.seed, "order": order}

  def baselines(self) -> dict[str, float]:
    """Validation loss of unigram and bigram counts, in nats per byte."""
    return ngram.baselines(self._text.train, self._text.validation)

  def encode(self, text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

  def decode(self, tokens) -> str:
    return np.asarray(tokens).astype(np.uint8).tobytes().decode("utf-8", errors="replace")
