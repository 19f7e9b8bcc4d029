"""What counting alone predicts: unigram and bigram losses, in nats per byte.

    p(b)     = (n_b + 1) / (n + 256)
    p(b | a) = (n_ab + 16 p(b)) / (n_a + 16)

The bigram falls back on the unigram where a has hardly been seen.
"""

from collections.abc import Iterable

import numpy as np

from research.data.text import Records

_BACKOFF = 16.0  # imagined bytes after each context, spread as the unigram
_ENOUGH = 4 * 2**20  # bytes counted and bytes scored, at most


def _sample(records: Records) -> Iterable[np.ndarray]:
  """Whole records evenly over the split, until there are enough bytes."""
  want = max(1, min(records.count, int(_ENOUGH / max(records.mean, 1.0))))
  total = 0
  for r in np.unique(np.linspace(0, records.count - 1, want).astype(int)):
    if total < _ENOUGH:
      record = records.read(int(r))[:_ENOUGH - total]
      total += len(record)
      yield record


def count_pairs(texts: Iterable[np.ndarray]) -> np.ndarray:
  """Counts n_ab of byte b right after byte a in the same record, [256, 256]."""
  counts = np.zeros(65_536, np.int64)
  for text in texts:
    pairs = text[:-1].astype(np.int32) * 256 + text[1:]
    counts += np.bincount(pairs, minlength=65_536)
  return counts.reshape(256, 256)


def losses(seen_AB: np.ndarray, scored_AB: np.ndarray) -> dict[str, float]:
  """Mean nats per byte on the pairs `scored_AB` of models counted on `seen_AB`."""
  n_B = seen_AB.sum(0)
  p_B = (n_B + 1.0) / (n_B.sum() + 256.0)
  p_AB = (seen_AB + _BACKOFF * p_B) / (seen_AB.sum(1, keepdims=True) + _BACKOFF)
  total = max(scored_AB.sum(), 1)
  return {"unigram": float(-(scored_AB.sum(0) * np.log(p_B)).sum() / total),
          "bigram": float(-(scored_AB * np.log(p_AB)).sum() / total)}


def baselines(train: Records, validation: Records) -> dict[str, float]:
  """Unigram and bigram validation loss, each from at most 4 MB of text."""
  return losses(count_pairs(_sample(train)), count_pairs(_sample(validation)))
