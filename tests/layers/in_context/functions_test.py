"""Families by their definitions in numpy, the curriculum as a shorter and narrower prompt, shifts by what they say."""

import functools

import jax
import numpy as np
import pytest

from layers.in_context import functions
from research.tasks.function_classes import FunctionClasses

Task = functools.partial(FunctionClasses, dims=4, pairs=5, hidden=8, batch_size=6)
draw = jax.jit(lambda task, seed: task.draw(jax.random.split(jax.random.key(seed), 2000)), static_argnums=0)
batch = jax.jit(lambda task, split, step, rows: task.batch(split, step, slice(*rows)), static_argnums=(0, 1, 3))


@functools.cache
def _drawn(**fields):
  return jax.tree.map(lambda a: np.asarray(a, np.float64), draw(Task(**fields), 0))


def _linear():
  return _drawn(noise=0.25, condition=3.0, x_scale=2.0)


def _sparse():
  return _drawn(family="sparse", sparsity=2, weight_scale=3.0, inputs="half")


def test_a_linear_function_is_its_weights_and_a_sparse_one_has_few():
  for found in (_linear(), _sparse()):
    np.testing.assert_allclose(found.f_BN, np.einsum("bnd,bd->bn", found.x_BND, found.w_BD), atol=1e-4)
  assert np.all(np.sum(_linear().w_BD != 0, 1) == 4) and np.all(np.sum(_sparse().w_BD != 0, 1) == 2)
  np.testing.assert_allclose(np.mean(_sparse().w_BD != 0, 0), 0.5, atol=0.05)  # every coordinate has its turn
  assert abs(np.var(_sparse().w_BD[_sparse().w_BD != 0]) - 9) < 1
  assert abs(np.var(_linear().y_BN - _linear().f_BN) - 0.25) < 0.02


def test_a_tree_is_constant_where_every_coordinate_keeps_its_sign():
  tree = _drawn(family="decision_tree")
  leaves = [len(np.unique(f)) for f in tree.f_BN]
  assert max(leaves) > 2
  same = np.all((tree.x_BND[:, :1] > 0) == (tree.x_BND[:, 1:] > 0), axis=2)
  assert same.sum() > 100
  np.testing.assert_array_equal(np.where(same, tree.f_BN[:, 1:], 0), np.where(same, tree.f_BN[:, :1], 0))


def test_a_network_has_the_moments_of_its_law_and_a_square_is_even_of_degree_two():
  relu = _network()
  np.testing.assert_allclose(np.mean(relu.f_BN**2) / np.mean(np.sum(relu.x_BND**2, 2)), 1.0, atol=0.1)
  x = np.float32(np.random.default_rng(0).standard_normal((3, 4)))
  square = jax.jit(lambda x: functions.respond(jax.random.key(0), x, 4, "quadratic")[0])
  np.testing.assert_allclose(square(-2 * x), 4 * square(x), rtol=1e-5)
  assert np.all(square(x) != 0)


def _network():
  return _drawn(family="relu_network", inputs="opposite")


def test_covariances_shift_as_they_say():
  each = np.mean(_linear().x_BND**2, axis=(0, 1))
  np.testing.assert_allclose(each[0] / each[3], 9.0, rtol=0.15)
  np.testing.assert_allclose(each.sum(), 4 * 4.0, rtol=0.05)
  assert np.all(_sparse().x_BND[..., 2:] == 0) and np.all(_sparse().x_BND[..., :2] != 0)


def test_the_last_point_is_opposite_to_all_others():
  signs = np.sign(_network().x_BND)
  np.testing.assert_array_equal(signs[:, :-1], np.broadcast_to(-signs[:, -1:], signs[:, :-1].shape))
  assert abs(signs[:, 0].mean()) < 0.1


def test_the_curriculum_is_the_narrower_task_with_points_left_out():
  task = Task(dims_start=2, points_start=3, grow_every=10)
  early, late = (batch(task, "train", step, (None,)) for step in (9, 25 + 3 * 2**20))  # the stretch of seed 3
  assert not np.any(early["inputs"][:, ::2, 2:]) and np.any(early["inputs"][:, ::2, 1])
  np.testing.assert_array_equal(early["weights"], np.tile([1, 1, 1, 0, 0, 0], (6, 1)))
  assert np.all(late["weights"] == 1) and np.all(late["inputs"][:, ::2, 3] != 0)
  assert task.sizes("validation", 0) == (4, 6)
  x, f = np.asarray(early["inputs"][:, ::2, :4], np.float64), np.asarray(early["labels"], np.float64)
  w = [np.linalg.lstsq(a[:, :2], b, rcond=None)[0] for a, b in zip(x, f)]  # f knows only what is not 0
  np.testing.assert_allclose(np.einsum("bnd,bd->bn", x[..., :2], w), f, atol=1e-4)


def test_sizes_grow_by_steps_up_to_their_end():
  sizes = [functions.grown(step, 11, 41, 2, 2000) for step in (0, 1999, 2000, 30_000, 10**6)]
  assert [int(size) for size in sizes] == [11, 11, 13, 41, 41]


def test_rows_of_hosts_are_the_batch_and_noise_is_seen_but_not_asked_for():
  task = Task(noise=1.0)
  whole, part = batch(task, "train", 2, (None,)), batch(task, "train", 2, (2, 6))
  for name, value in whole.items():
    np.testing.assert_array_equal(value[2:], part[name])
  assert np.all(whole["inputs"][:, 1::2, -1] != whole["labels"][:, :-1])
  (total, weight), metrics = jax.jit(task.loss)(whole["labels"] + 0.5, whole)
  np.testing.assert_allclose([total, weight, *metrics["risk"]], [9.0, 36, 1.5, 6], rtol=1e-5)
  (total, _), metrics = jax.jit(task.loss)(0 * whole["labels"], whole)
  np.testing.assert_allclose(metrics["of_zero"][0], metrics["of_zero"][1], rtol=1e-5)


@pytest.mark.parametrize("fields, match", [
    (dict(dims=0), "dims=0 must be at least 1"),
    (dict(pairs=0), "pairs=0 must be at least 1"),
    (dict(family="cubic"), "family='cubic' must be one of linear"),
    (dict(inputs="cauchy"), "inputs='cauchy' must be one of normal"),
    (dict(noise=-0.1), "noise=-0.1 must be a number from 0.0"),
    (dict(sparsity=0), "sparsity=0 must be at least 1"),
    (dict(dims_start=5), "dims_start=5 must be at most 4"),
    (dict(points_start=7), "points_start=7 must be at most 6"),
    (dict(grow_every=0), "grow_every=0 must be at least 1"),
    (dict(tree_depth=40), "tree_depth=40 must be at most 12"),
    (dict(batch_size=2**27), "batch_size=134217728 must be at most"),
])
def test_bad_fields_are_refused_with_numbers_and_rule(fields, match):
  with pytest.raises(ValueError, match=match):
    Task(**fields)
