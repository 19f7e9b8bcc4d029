"""Prompts of the task: what they are drawn from, how they are encoded, what is refused."""

import functools

import jax
import numpy as np
import pytest

from layers.in_context import standard_tokens
from research.tasks.in_context import InContextRegression

batch = jax.jit(lambda task, split, step, rows: task.batch(split, step, slice(*rows)), static_argnums=(0, 1, 3))
draw = jax.jit(lambda task, key: task.draw(jax.random.split(key, 4000)), static_argnums=0)
Task = functools.partial(InContextRegression, dims=3, pairs=4, batch_size=6)


def _drawn(seed=0, **fields):
  return jax.tree.map(lambda a: np.asarray(a, np.float64), draw(Task(**fields), jax.random.key(seed)))


def test_rows_of_hosts_are_the_batch_and_splits_steps_and_seeds_differ():
  whole = batch(Task(), "train", 2, (None,))
  part = batch(Task(), "train", 2, (2, 6))
  for name, value in whole.items():
    np.testing.assert_array_equal(value[2:], part[name])
  others = batch(Task(), "train", 3, (None,)), batch(Task(), "validation", 2, (None,)), batch(
      Task(seed=1), "train", 2, (None,))
  assert all(np.all(other["inputs"][:, 0] != whole["inputs"][:, 0]) for other in others)


def test_concatenated_tokens_are_pairs_and_a_query_without_its_y():
  tokens, label = (np.asarray(batch(Task(), "train", 0, (None,))[k]) for k in ("inputs", "labels"))
  assert tokens.shape == (6, 5, 4) and label.shape == (6, 1) and not tokens[:, -1, -1].any()
  w = np.linalg.lstsq(tokens[0, :4, :3], tokens[0, :4, 3], rcond=None)[0]
  np.testing.assert_allclose(tokens[0, -1, :3] @ w, label[0, 0], atol=1e-4)


def test_interleaved_tokens_hold_x_and_y_in_turn_and_every_y_is_a_label():
  both = [batch(Task(encoding=e), "train", 0, (None,)) for e in ("interleaved", "concatenated")]
  long, short = (np.asarray(b["inputs"]) for b in both)
  np.testing.assert_array_equal(long[:, ::2, :3], short[..., :3])
  np.testing.assert_array_equal(long[:, 1::2, 3], short[:, :-1, 3])
  assert not long[:, ::2, 3].any() and not long[:, 1::2, :3].any()
  labels = np.concatenate([short[:, :-1, 3], both[1]["labels"]], 1)
  np.testing.assert_array_equal(both[0]["labels"], labels)


def test_standard_tokens_are_interleaved_ones_behind_their_places_with_one_label():
  standard, plain, pairs = (batch(Task(encoding=e, places=6), "train", 0, (None,))
                            for e in ("standard", "interleaved", "concatenated"))
  np.testing.assert_array_equal(standard["inputs"][..., 6:], plain["inputs"])
  np.testing.assert_allclose(standard["inputs"][2, :, :6], standard_tokens.table(9, 6), atol=1e-6)
  np.testing.assert_array_equal(standard["labels"], pairs["labels"])


@pytest.mark.parametrize("fields", [
    dict(), dict(coordinates="uniform", scale=2.0), dict(covariance="skewed", condition=3.0, weights="inverse")],
    ids=["isotropic", "uniform", "skewed"])
def test_covariances_are_those_it_states(fields):
  found = _drawn(**fields)
  x, sigma, weight = found.x_BND.reshape(-1, 3), *Task(**fields).covariances()
  np.testing.assert_allclose(x.T @ x / len(x), sigma, atol=0.06 * np.abs(sigma).max())
  np.testing.assert_allclose(found.w_BD.T @ found.w_BD / 4000, weight, atol=0.12 * np.abs(weight).max())


def test_noise_is_on_the_pairs_and_not_on_the_target():
  found = _drawn(noise=0.25)
  rest = found.y_BN - np.einsum("bnd,bd->bn", found.x_BND, found.w_BD)
  assert abs(rest.var() - 0.25) < 0.01
  np.testing.assert_allclose(found.target_B, np.sum(found.query_BD * found.w_BD, 1), atol=1e-5)


def test_random_covariances_are_exponential_and_shared_within_a_prompt():
  found = _drawn(covariance="random")
  square = found.x_BND**2
  assert abs(square.mean() - 1) < 0.05 and abs((square**2).mean() / 3 - 2) < 0.4  # E l = 1, E l^2 = 2
  assert np.corrcoef(square[:, 0, 0], square[:, 1, 0])[0, 1] > 0.1


def test_responses_have_the_moments_of_their_law():
  relu = _drawn(response="relu_network")
  # sqrt(2/H) v . relu(V x) has variance |x|^2 whatever H: relu keeps half of a square.
  np.testing.assert_allclose(np.mean(relu.target_B**2 / np.sum(relu.query_BD**2, 1)), 1.0, atol=0.08)
  assert abs(np.mean(relu.target_B)) < 0.1
  wave = _drawn(response="sinusoid", coordinates="uniform", scale=10.0)
  assert np.abs(wave.target_B).max() <= 0.5 and np.abs(wave.query_BD).max() <= 5.0


@pytest.mark.parametrize("fields, match", [
    (dict(dims=0), "dims=0 must be at least 1"),
    (dict(pairs=0), "pairs=0 must be at least 1"),
    (dict(noise=-0.1), "noise=-0.1 must be a number from 0.0"),
    (dict(covariance="skewed", condition=0.0), "condition=0.0 must be a number from 0.001"),
    (dict(scale=0.0), "scale=0.0 must be a number"),
    (dict(coordinates="cauchy"), "coordinates='cauchy' must be one of normal, uniform"),
    (dict(response="cubic"), "response='cubic' must be one of linear"),
    (dict(weights="none"), "weights='none' must be one of normal, inverse"),
    (dict(encoding="mixed"), "encoding='mixed' must be one of"),
    (dict(places=0), "places=0 must be at least 2"),
    (dict(places=5), "places=5 must be even"),
    (dict(batch_size=2**27), "batch_size=134217728 must be at most"),
])
def test_bad_fields_are_refused_with_numbers_and_rule(fields, match):
  with pytest.raises(ValueError, match=match):
    Task(**fields)


def test_the_right_answer_costs_nothing_and_an_error_its_square():
  task = Task()
  found = batch(task, "train", 0, (None,))
  (total, weight), metrics = jax.jit(task.loss)(found["labels"] + 0.5, found)
  np.testing.assert_allclose([total, weight, *metrics["risk"]], [1.5, 6, 1.5, 6], rtol=1e-5)
