"""Windows over records: every place is met, none twice, and none beside a stranger."""

import numpy as np
import pytest

from research.data import windows
from research.data.text import Records

# Records of numbers that are all different stand for text, so that a label
# tells which record and which place it came from.


def _records(*lengths, measured=True):
  ends = np.cumsum((0,) + lengths)
  held = [np.arange(a, b) for a, b in zip(ends, ends[1:])]
  lengths_R = np.array(lengths, np.int64)
  mean = float(lengths_R.mean())
  return Records(held.__getitem__, len(held), lengths_R if measured else None, mean)


def _labels(row_3T):
  return row_3T[1][row_3T[2] >= 0]


def _owner(records, places):
  return np.searchsorted(np.cumsum(records.lengths_R), places, side="right")


LONG = _records(1000, 1, 37, 2, 431, 16, 17, 18, 90)
SHORT = _records(*np.random.default_rng(0).integers(1, 12, 80))


def test_validation_meets_every_place_exactly_once():
  rows = windows.validation_rows(LONG, 16)
  met = np.concatenate([_labels(rows[i]) for i in range(len(rows))])
  firsts = np.cumsum((0,) + tuple(LONG.lengths_R))[:-1]
  assert sorted(met) == sorted(set(range(LONG.lengths_R.sum())) - set(firsts))


def test_the_first_rows_of_validation_are_spread_over_the_text():
  one = _records(10_001)
  rows = windows.validation_rows(one, 10)
  at = np.sort([rows[i][0, 0] for i in range(20)]) / 10_000
  assert np.max(np.diff(np.concatenate([[0], at, [1]]))) < 0.12  # a fair share is 0.05


@pytest.mark.parametrize("n", [1, 2, 3, 10, 97, 1000])
def test_spreading_is_a_permutation(n):
  assert sorted(i * windows.spread(n) % n for i in range(n)) == list(range(n))


def test_an_epoch_is_a_permutation_and_the_next_is_another():
  records = _records(*[17] * 50)
  rows = windows.training_rows(records, 16, seed=3)
  epochs = [[int(rows[e * 50 + i][0, 0]) // 17 for i in range(50)] for e in range(3)]
  assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]


def test_places_are_met_equally_often_whatever_the_length_of_their_file():
  T, epochs, copies = 16, 20, 40
  records = _records(*[200, 17, 9, 2] * copies)
  rows = windows.training_rows(records, T, seed=0)
  n = windows.count_pieces(records.lengths_R, T).sum()
  places = np.concatenate([_labels(rows[i]) for i in range(n * epochs)])
  met = np.bincount(places, minlength=228 * copies)
  met = met.reshape(copies, 228).mean(0) / epochs
  long, short = met[1:200], np.concatenate([met[201:217], met[218:226], met[227:]])
  assert np.all(short == 1)  # one piece, all of it, every epoch
  np.testing.assert_allclose(long[T:-2 * T], 1, atol=0.12)  # 0.025 is the standard error
  assert 0.4 < long.min() and long.max() < 2.1  # near the ends of a file
  np.testing.assert_allclose(long.mean(), 13 * T / 199, rtol=1e-6)  # 13 windows instead of 12.4


def test_training_rows_are_full_where_the_record_allows():
  rows = windows.training_rows(_records(1000, 500), 16, seed=0)
  assert all(np.all(rows[i][2] == 0) for i in range(200))


def test_training_windows_begin_anywhere():
  rows = windows.training_rows(_records(1000), 16, seed=0)
  assert {int(rows[i][0, 0]) % 16 for i in range(400)} == set(range(16))


def test_a_label_is_the_next_place_of_the_same_record():
  for records in (LONG, SHORT):
    for rows in (windows.training_rows(records, 16, seed=1), windows.validation_rows(records, 16)):
      for i in range(40):
        inputs, labels, segment = rows[i]
        real = segment >= 0
        np.testing.assert_array_equal(labels[real], inputs[real] + 1)
        np.testing.assert_array_equal(_owner(records, labels[real]), _owner(records, inputs[real]))


def test_sentences_share_a_row_and_segments_tell_them_apart():
  rows = windows.training_rows(SHORT, 32, seed=0)
  assert windows.pieces_per_row(SHORT, 32) > 1
  filled = []
  for i in range(50):
    inputs, _, segment = rows[i]
    real = segment >= 0
    owners = _owner(SHORT, inputs[real])
    # Same segment exactly when same record: attention by segment crosses nothing.
    np.testing.assert_array_equal(segment[real][:, None] == segment[real], owners[:, None] == owners)
    assert np.all(np.diff(segment[real]) >= 0) and not np.any(real[np.sum(real):])
    filled.append(real.mean())
  assert np.mean(filled) > 0.75


def test_what_does_not_fit_is_cut_and_what_is_left_is_padding():
  row = windows.pack([np.arange(4), np.arange(10, 11), np.arange(20, 29)], 8)
  np.testing.assert_array_equal(row, [[0, 1, 2, 20, 21, 22, 23, 24], [1, 2, 3, 21, 22, 23, 24, 25],
                                      [0, 0, 0, 2, 2, 2, 2, 2]])
  row = windows.pack([np.arange(3)], 4)
  np.testing.assert_array_equal(row, [[0, 1, 0, 0], [1, 2, 0, 0], [0, 0, -1, -1]])


def test_records_too_many_to_measure_give_a_window_each():
  records = _records(*[200] * 30, measured=False)
  rows = windows.training_rows(records, 16, seed=0)
  starts = np.array([[rows[e * 30 + i][0, 0] for i in range(30)] for e in range(20)])
  assert all(sorted(epoch // 200) == list(range(30)) for epoch in starts)
  assert (starts % 200).min() < 5 and 178 < (starts % 200).max() <= 183
  again = windows.training_rows(records, 16, seed=0)
  np.testing.assert_array_equal(again[77], rows[77])


def test_the_seed_decides_the_order():
  rows = [windows.training_rows(LONG, 16, seed=s) for s in (0, 0, 1)]
  draws = [np.stack([r[i] for i in range(20)]) for r in rows]
  assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
