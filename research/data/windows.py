"""Which bytes stand in row i: shuffled windows over records, by random access.

A record of n bytes has n - 1 places to learn from (an input and the byte after
it) and is covered by ceil((n - 1) / T) pieces of at most T places. Pieces, not
records, are shuffled, so a byte of a long file is met as often as one of a short
file. Validation takes the pieces as they are: each place exactly once. Training
moves each piece by up to T / 2 either way and keeps it inside its record, so
places in the middle are met equally often and every row is full.

Where the pieces are short (sentences), k consecutive ones share a row, told apart by
`segment_ids`. Row i depends on (records, T, seed, i) and on nothing read before.
"""

from collections.abc import Sequence
import functools
import math

import grain
import numpy as np

from research.data.text import Records

# Dims: T tokens, R records.

_LOOSE = 0.75  # a row filled less than this, on average, takes more than one piece


def count_pieces(lengths_R, tokens: int) -> np.ndarray:
  """ceil((n - 1) / tokens) for every record length n; none below two bytes."""
  return -(-np.maximum(np.asarray(lengths_R, np.int64) - 1, 0) // tokens)


def pieces_per_row(records: Records, tokens: int) -> int:
  """How many pieces share a row: 1 if they are about as long as the row."""
  if records.lengths_R is None:
    mean = min(records.mean - 1, tokens)
  else:
    places = np.maximum(records.lengths_R - 1, 0).sum()
    mean = places / count_pieces(records.lengths_R, tokens).sum()
  return 1 if mean >= _LOOSE * tokens else math.ceil(tokens / max(mean, 1.0))


def _locate(records: Records, tokens: int):
  """Returns (number of pieces, function from a piece to (record, its piece number))."""
  if records.lengths_R is None:  # one piece a record, wherever it begins
    return records.count, lambda w: (w, None)
  ends_R = np.cumsum(count_pieces(records.lengths_R, tokens))

  def find(w: int):
    r = int(np.searchsorted(ends_R, w, side="right"))
    return r, w - (int(ends_R[r - 1]) if r else 0)

  return int(ends_R[-1]), find


def _cut_training(w: int, rng: np.random.Generator, *, read, find, tokens: int) -> np.ndarray:
  r, j = find(w)
  record = read(r)
  last = max(len(record) - 1 - tokens, 0)
  if j is None:
    start = int(rng.integers(last + 1))
  else:
    start = min(max(j * tokens + int(rng.integers(-(tokens // 2), tokens - tokens // 2)), 0), last)
  return record[start:start + tokens + 1]


def _cut_validation(w: int, *, read, find, tokens: int) -> np.ndarray:
  r, j = find(w)
  start = (j or 0) * tokens
  return read(r)[start:start + tokens + 1]


def pack(pieces: Sequence[np.ndarray], tokens: int) -> np.ndarray:
  """Lays pieces side by side in one row of int32 [3, T]: inputs, labels, segment.

  A piece of n bytes takes n - 1 places, so a label never belongs to another
  piece. What does not fit is dropped; what is left over has segment -1.
  """
  row_3T = np.zeros((3, tokens), np.int32)
  row_3T[2] = -1
  at = 0
  for s, piece in enumerate(pieces):
    n = min(len(piece) - 1, tokens - at)
    if n > 0:
      row_3T[0, at:at + n] = piece[:n]
      row_3T[1, at:at + n] = piece[1:n + 1]
      row_3T[2, at:at + n] = s
      at += n
  return row_3T


def _rows(pieces: grain.MapDataset, k: int, tokens: int) -> grain.MapDataset:
  return pieces.batch(k, batch_fn=functools.partial(pack, tokens=tokens))


def spread(n: int) -> int:
  """A stride coprime to n whose multiples lie evenly in [0, n) however few are taken."""
  stride = max(1, round(n * (math.sqrt(5) - 1) / 2))
  while math.gcd(stride, n) != 1:
    stride += 1
  return stride


def training_rows(records: Records, tokens: int, seed: int) -> grain.MapDataset:
  """Endless rows; each epoch meets every piece once, in an order of its own."""
  n, find = _locate(records, tokens)
  cut = functools.partial(_cut_training, read=records.read, find=find, tokens=tokens)
  order = grain.MapDataset.range(n).seed(seed).shuffle().repeat()
  return _rows(order.random_map(cut), pieces_per_row(records, tokens), tokens)


def validation_rows(records: Records, tokens: int) -> grain.MapDataset:
  """Every piece once, the first rows already spread over the whole text."""
  n, find = _locate(records, tokens)
  cut = functools.partial(_cut_validation, read=records.read, find=find, tokens=tokens)
  stride = spread(n)
  order = grain.MapDataset.range(n).map(lambda i: i * stride % n)
  return _rows(order.map(cut), pieces_per_row(records, tokens), tokens)


def order_digest(records: Records, tokens: int, seed: int) -> list[int]:
  """The first pieces of the shuffled order: what changes if the shuffle does."""
  n, _ = _locate(records, tokens)
  order = grain.MapDataset.range(n).seed(seed).shuffle().repeat()
  return [int(order[i]) for i in range(8)]
