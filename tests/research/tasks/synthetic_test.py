"""Recall and parity: the rules that their sequences keep."""

import jax
import numpy as np
import pytest

from research.tasks.parity import Parity
from research.tasks import recall

TASK = recall.MultiQueryRecall(vocab=64, tokens=40, pairs=6, batch_size=256)
batch = jax.jit(lambda split, step: TASK.batch(split, step), static_argnums=0)


@pytest.fixture(scope="module")
def drawn():
  return jax.tree.map(np.asarray, batch("train", 4))


def test_recall_begins_with_distinct_keys_and_distinct_values(drawn):
  pairs = drawn["inputs"][:, :12].reshape(256, 6, 2)
  keys, values = pairs[..., 0], pairs[..., 1]
  assert keys.min() >= 1 and keys.max() < 32 and values.min() >= 32 and values.max() < 64
  assert all(len(set(row)) == 6 for row in np.concatenate([keys, values]))


def test_each_key_is_asked_once_and_its_value_is_the_label(drawn):
  for inputs, labels, weights in zip(drawn["inputs"], drawn["labels"], drawn["weights"]):
    asked = np.flatnonzero(weights)
    value = dict(inputs[:12].reshape(6, 2))
    assert sorted(inputs[asked]) == sorted(value)
    np.testing.assert_array_equal(labels[asked], [value[k] for k in inputs[asked]])
    assert np.all(asked >= 12) and np.all((asked - 12) % 2 == 0)


def test_queries_crowd_near_the_pairs_as_the_power_says():
  noise = np.random.default_rng(0).uniform(1e-9, 1, (40_000, 14)).astype(np.float32)
  log_p = -0.99 * np.log1p(np.arange(14)).astype(np.float32)
  first = jax.jit(jax.vmap(lambda u: recall.draw(u, log_p, 1)[0]))(noise)
  p = np.exp(log_p)
  np.testing.assert_allclose(np.bincount(first, minlength=14) / 40_000, p / p.sum(), atol=0.01)


def test_filler_is_any_token_of_the_vocabulary(drawn):
  filler = drawn["inputs"][:, 12:][drawn["weights"][:, 12:] == 0]
  assert set(filler) == set(range(64))
  np.testing.assert_allclose(filler.mean(), 31.5, atol=1.5)  # 0.25 is the standard error


def test_parity_flips_exactly_at_the_ones():
  drawn = jax.tree.map(np.asarray, jax.jit(Parity(tokens=33).batch, static_argnums=0)("train", 0))
  before = np.pad(drawn["labels"], ((0, 0), (1, 0)))[:, :-1]
  np.testing.assert_array_equal(drawn["labels"] ^ before, drawn["inputs"])
  assert set(drawn["inputs"].ravel()) == {0, 1} and np.all(drawn["weights"] == 1)
  np.testing.assert_allclose(drawn["inputs"].mean(), 0.5, atol=0.05)  # 0.011 is the standard error


def test_no_row_of_training_comes_back_in_validation():
  rows = lambda split: {r.tobytes() for s in range(8) for r in np.asarray(batch(split, s)["inputs"])}
  train, validation = rows("train"), rows("validation")
  assert len(train) == len(validation) == 8 * 256 and not train & validation
