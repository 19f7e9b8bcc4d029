"""What counting predicts, where the answer is known."""

import numpy as np

from research.data import ngram
from research.data.text import Records


def _records(*texts):
  held = [np.frombuffer(t, np.uint8) for t in texts]
  lengths = np.array([len(t) for t in texts])
  return Records(held.__getitem__, len(held), lengths, float(lengths.mean()))


def test_pairs_are_counted_within_records():
  counts = ngram.count_pairs([np.frombuffer(t, np.uint8) for t in (b"aab", b"ba", b"", b"c")])
  a, b = b"ab"
  assert (counts[a, a], counts[a, b], counts[b, a], counts.sum()) == (1, 1, 1, 3)


def test_probabilities_sum_to_one_after_any_byte():
  counts = ngram.count_pairs([np.frombuffer(b"some text, some more text", np.uint8)])
  for a in b"s z":
    nats = [ngram.losses(counts, np.eye(1, 65_536, a * 256 + b, int).reshape(256, 256)) for b in range(256)]
    np.testing.assert_allclose(sum(np.exp(-n["bigram"]) for n in nats), 1)
    np.testing.assert_allclose(sum(np.exp(-n["unigram"]) for n in nats), 1)


def test_alternating_text_costs_a_bit_by_unigrams_and_nothing_by_bigrams():
  text = _records(b"ab" * 50_000)
  got = ngram.baselines(text, text)
  np.testing.assert_allclose(got["unigram"], np.log(2), rtol=5e-3)
  assert 0 < got["bigram"] < 0.002
