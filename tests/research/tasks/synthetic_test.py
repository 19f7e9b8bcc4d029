"""Tasks made on the device: the rules that their sequences keep."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from research.tasks import permutations
from research.tasks import recall
from research.tasks.delay import Delay
from research.tasks.facts import Facts
from research.tasks.induction import Induction
from research.tasks.modular import ModularSum
from research.tasks.parity import Parity
from research.tasks.selective_copy import SelectiveCopy

TASK = recall.MultiQueryRecall(vocab=64, tokens=40, pairs=6, batch_size=256)
FAST = {"xla_backend_optimization_level": 0}  # a compilation takes a third of the time
batch = jax.jit(lambda split, step: TASK.batch(split, step), static_argnums=0, compiler_options=FAST)
made = jax.jit(lambda task: task.batch("train", 4), static_argnums=0, compiler_options=FAST)


def _made(task):
  return jax.tree.map(np.asarray, made(task))


def _even(values, many: int, errors: float = 5.0):
  """Whether each of `many` numbers comes up as often as the others, to `errors` standard errors."""
  count, p = np.bincount(np.ravel(values), minlength=many), 1 / many
  return len(count) == many and np.all(
      abs(count - count.sum() * p) < errors * np.sqrt(count.sum() * p * (1 - p)))


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


# --- keys bound twice -----------------------------------------------------------


def test_every_key_is_bound_twice_and_its_latest_value_counts():
  task = recall.MultiQueryRecall(vocab=24, tokens=43, pairs=5, rebind=True, batch_size=512)
  drawn, orders = _made(task), set()
  for inputs, labels, weights in zip(drawn["inputs"], drawn["labels"], drawn["weights"]):
    bound, values = inputs[:20].reshape(10, 2).T
    asked = np.flatnonzero(weights)
    latest = dict(zip(bound, values))
    assert sorted(bound) == sorted([*latest] * 2) and bound.min() >= 1 and bound.max() < 12
    assert len(set(values)) == 10 and values.min() >= 12 and values.max() < 24
    assert sorted(inputs[asked]) == sorted(latest) and np.all(asked >= 20)
    np.testing.assert_array_equal(labels[asked], [latest[k] for k in inputs[asked]])
    orders.add(tuple(np.unique(bound, return_inverse=True)[1]))
  assert len(orders) > 500  # of 10! / 2^5 orders


def test_the_fingerprint_of_plain_recall_is_that_of_older_runs():
  assert "rebind" not in TASK.fingerprint()
  assert recall.MultiQueryRecall(rebind=True).fingerprint()["rebind"] is True


# --- permutations ---------------------------------------------------------------


@pytest.mark.parametrize("things", [3, 4, 5])
def test_the_table_is_that_of_a_group_of_permutations(things):
  table, rows = permutations.cayley(things), permutations.elements(things)
  each = np.arange(len(rows))
  assert len(set(map(tuple, rows))) == len(rows) == math.factorial(things)
  for a, b in np.random.default_rng(0).integers(0, len(rows), (200, 2)):
    assert tuple(rows[table[a, b]]) == tuple(rows[a][i] for i in rows[b])
  np.testing.assert_array_equal(table[0], each)
  np.testing.assert_array_equal(table[:, 0], each)
  assert np.all(np.sort(table, axis=0) == each[:, None]) and np.all(np.sort(table, axis=1) == each)


def test_swaps_exchange_neighbours_and_reach_the_whole_group():
  assert permutations.elements(4)[permutations.swaps(4)].tolist() == [
      [0, 1, 3, 2], [0, 2, 1, 3], [1, 0, 2, 3]]
  table, moves = permutations.cayley(5), permutations.swaps(5)
  reached = {0}
  for _ in range(10):  # the longest element of S5 is 10 swaps away
    reached |= {int(table[m, g]) for m in moves for g in reached}
  assert len(moves) == 4 and len(reached) == 120


@pytest.mark.parametrize("group, moves", [("S3", "all"), ("S5", "all"), ("S5", "swaps")])
def test_the_label_is_the_fold_of_the_permutations(group, moves):
  task = permutations.Permutations(group=group, moves=moves, tokens=37, batch_size=64)
  drawn = _made(task)
  rows = list(itertools.permutations(range(permutations.THINGS[group])))
  for inputs, labels in zip(drawn["inputs"][:16], drawn["labels"]):
    product = rows[0]
    for token, label in zip(inputs, labels):
      product = tuple(rows[token][i] for i in product)
      assert rows[label] == product
  assert np.all(drawn["weights"] == 1)


def test_every_product_is_as_likely_as_any_other():
  drawn = _made(permutations.Permutations(tokens=9, batch_size=2048))
  assert _even(drawn["inputs"], 6)
  assert all(_even(drawn["labels"][:, t], 6) for t in (0, 1, 8))
  assert _even(6 * drawn["labels"][:, 3] + drawn["labels"][:, 4], 36)  # and of the one before


def test_tokens_of_swaps_are_swaps_and_all_of_them():
  drawn = _made(permutations.Permutations(group="S5", moves="swaps", tokens=37, batch_size=64))
  kinds, index = np.unique(drawn["inputs"], return_inverse=True)
  np.testing.assert_array_equal(kinds, permutations.swaps(5))
  assert _even(index, 4)


# --- sums, copies, look-ups, echoes ---------------------------------------------


@pytest.mark.parametrize("modulus, counting", [(2, False), (3, True), (7, False)])
def test_the_label_is_the_remainder_of_the_sum(modulus, counting):
  drawn = _made(ModularSum(modulus=modulus, counting=counting, tokens=41, batch_size=128))
  assert _even(drawn["inputs"], 2 if counting else modulus)
  for inputs, labels in zip(drawn["inputs"].tolist(), drawn["labels"].tolist()):
    assert labels == [sum(inputs[:t + 1]) % modulus for t in range(41)]
  assert np.all(drawn["weights"] == 1) and _even(drawn["labels"][:, -1], modulus)


@pytest.mark.parametrize("scattered", [True, False])
def test_the_data_are_repeated_in_order_at_the_markers(scattered):
  drawn = _made(SelectiveCopy(vocab=7, tokens=15, items=4, scattered=scattered, batch_size=512))
  for inputs, labels, weights in zip(drawn["inputs"], drawn["labels"], drawn["weights"]):
    before, markers = inputs[:11], inputs[11:]
    assert np.all(markers == 1) and np.all(weights == [0] * 11 + [1] * 4)
    np.testing.assert_array_equal(labels, [0] * 11 + before[before > 1].tolist())
    assert np.count_nonzero(before == 0) == 7 and (scattered or np.all(before[:4] > 1))
  assert _even(drawn["labels"][:, 11:] - 2, 5)


def test_data_stand_at_any_places_alike():
  drawn = _made(SelectiveCopy(vocab=4, tokens=7, items=2, batch_size=2048))
  first, second = np.nonzero(drawn["inputs"][:, :5] > 1)[1].reshape(2048, 2).T
  pairs, number = np.unique(5 * first + second, return_inverse=True)
  assert len(pairs) == 10 and _even(number, 10)


def test_induction_asks_what_followed_the_only_other_trigger():
  drawn = _made(Induction(vocab=6, tokens=9, batch_size=2048))
  row, place = np.nonzero(drawn["inputs"] == 0)
  assert np.array_equal(row, np.repeat(np.arange(2048), 2)) and np.all(place[1::2] == 8)
  np.testing.assert_array_equal(drawn["labels"][:, -1], drawn["inputs"][np.arange(2048), place[::2] + 1])
  assert np.all(drawn["weights"] == [0] * 8 + [1]) and np.all(drawn["labels"][:, :-1] == 0)
  assert _even(place[::2], 7) and _even(drawn["labels"][:, -1] - 1, 5)


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_the_echo_is_the_token_so_many_steps_back(steps):
  drawn = _made(Delay(vocab=5, tokens=13, delay=steps, batch_size=128))
  np.testing.assert_array_equal(drawn["labels"][:, steps:], drawn["inputs"][:, :-steps])
  assert np.all(drawn["labels"][:, :steps] == 0) and _even(drawn["inputs"], 5)
  assert np.all(drawn["weights"] == (np.arange(13) >= steps))


@pytest.mark.parametrize("tokens", [11, 12, 13])
def test_a_key_of_two_tokens_has_one_value_everywhere(tokens):
  drawn = _made(Facts(facts=20, vocab=12, tokens=tokens, batch_size=512))
  value, asked = {}, []
  for inputs, labels, weights in zip(*(drawn[k].tolist() for k in ("inputs", "labels", "weights"))):
    assert weights == [float(t % 3 == 1) for t in range(tokens)]
    for t in range(1, tokens, 3):
      key = tuple(inputs[t - 1:t + 1])
      assert value.setdefault(key, labels[t]) == labels[t] and inputs[t + 1:t + 2] in ([], [labels[t]])
      asked.append(key)
  assert len(value) == 20 and max(max(key) for key in value) < 6 <= min(value.values())
  assert _even([sorted(value).index(key) for key in asked], 20)


def test_validation_asks_for_the_facts_of_training_and_another_seed_for_others():
  task = Facts(facts=20, vocab=12, tokens=12, batch_size=256)
  facts = lambda drawn: {tuple(row) for row in np.asarray(drawn["inputs"]).reshape(-1, 3).tolist()}
  validation = facts(jax.jit(lambda: task.batch("validation", 4), compiler_options=FAST)())
  assert facts(_made(task)) == validation
  assert len(validation & facts(_made(dataclasses.replace(task, seed=1)))) < 15


@pytest.mark.parametrize("task", [
    Facts(facts=1, vocab=2, tokens=2, batch_size=3),
    permutations.Permutations(tokens=1, batch_size=1), ModularSum(tokens=1, batch_size=3),
    SelectiveCopy(vocab=4, tokens=2, items=1, batch_size=1), Delay(vocab=2, tokens=2, delay=1, batch_size=1),
    Induction(vocab=3, tokens=3, batch_size=5), recall.MultiQueryRecall(
        vocab=4, tokens=6, pairs=1, rebind=True, batch_size=3)], ids=lambda t: type(t).__name__)
def test_the_shortest_sequences_still_ask_something(task):
  drawn = _made(task)
  assert drawn["inputs"].shape == (task.batch_size, task.tokens)
  assert np.all(drawn["weights"].sum(axis=1) == 1)
  limit, = task.model_fields().values()
  assert all(0 <= drawn[k].min() and drawn[k].max() < limit for k in ("inputs", "labels"))
