"""The facts about packed rows, on rows written out by hand."""

import jax
import numpy as np
import pytest

from layers import segments

# Row by row: usual; padding inside and after; leading padding; all padding.
IDS = np.array([[5, 5, 5, 2, 2, 2],
                [7, 7, -1, 3, -1, -1],
                [-1, -1, 4, 4, 4, 0],
                [-1, -1, -1, -1, -1, -1]])

first_segment = jax.jit(segments.first_segment)
tokens_to_last = jax.jit(segments.tokens_to_last)
positions = jax.jit(segments.positions)
window = jax.jit(segments.window, static_argnums=2)


def test_the_first_segment_is_that_of_the_first_real_token():
  np.testing.assert_array_equal(first_segment(IDS), [5, 7, 4, -1])


def test_trailing_padding_alone_is_cut():
  np.testing.assert_array_equal(tokens_to_last(IDS), [6, 4, 6, 0])


def test_positions_count_from_the_start_of_each_segment():
  position, seen = positions(IDS, np.zeros(4, np.int32))
  real = np.where(IDS >= 0, position, -9)
  np.testing.assert_array_equal(real, [[0, 1, 2, 0, 1, 2],
                                       [0, 1, -9, 0, -9, -9],
                                       [-9, -9, 0, 1, 2, 0],
                                       [-9] * 6])
  np.testing.assert_array_equal(seen, [3, 1, 1, 0])


def test_only_the_first_segment_continues_what_was_seen():
  position, seen = positions(IDS, np.array([10, 20, 30, 40], np.int32))
  real = np.where(IDS >= 0, position, -9)
  np.testing.assert_array_equal(real, [[10, 11, 12, 0, 1, 2],
                                       [20, 21, -9, 0, -9, -9],
                                       [-9, -9, 30, 31, 32, 0],
                                       [-9] * 6])
  np.testing.assert_array_equal(seen, [3, 1, 1, 40])


def test_a_row_of_one_segment_adds_its_length_to_what_was_seen():
  position, seen = positions(np.full((1, 4), 8), np.array([6], np.int32))
  np.testing.assert_array_equal(position, [[6, 7, 8, 9]])
  np.testing.assert_array_equal(seen, [10])


@pytest.mark.parametrize("name, first, count, position, seen",
                         [(0, 0, 1, 3, 4), (9, 9, 1, 3, 4), (-1, -1, 0, None, 3)])
def test_one_token_is_a_row(name, first, count, position, seen):
  ids = np.array([[name]])
  assert (first_segment(ids)[0], tokens_to_last(ids)[0]) == (first, count)
  got, total = positions(ids, np.array([3], np.int32))
  assert total[0] == seen and position in (None, got[0, 0])


def test_a_window_starts_where_each_row_says():
  line = np.arange(24).reshape(2, 6, 2)
  np.testing.assert_array_equal(window(line, np.array([0, 3]), 3), [line[0, :3], line[1, 3:]])
  np.testing.assert_array_equal(window(line[..., 0], np.array([2, 1]), 2),
                                [line[0, 2:4, 0], line[1, 1:3, 0]])
  assert window(line, np.array([0, 3]), 0).shape == (2, 0, 2)
