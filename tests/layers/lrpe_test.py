"""Products of LRPE features against the sum of cosines; only distances count."""

import jax
import numpy as np

from layers import lrpe

features = jax.jit(lrpe.features)


def _products(first, rate):
  q, k = np.random.default_rng(0).standard_normal((2, 1, 5, 2, 3), np.float32)
  position = first + np.arange(5)[None]
  return q, k, np.einsum("bthk,bshk->hts", features(q, position, rate), features(k, position, rate))


def test_products_are_sums_of_cosines_of_the_distance():
  rate = np.random.default_rng(1).uniform(0, 1, (2, 3)).astype(np.float32)
  q, k, got = _products(0, rate)
  distance = np.subtract.outer(np.arange(5), np.arange(5))
  turn = np.cos(distance[..., None, None] * rate.astype(np.float64))
  want = np.einsum("bthk,bshk,tshk->hts", q.astype(np.float64), k, turn)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_an_offset_of_all_positions_changes_nothing():
  rate = np.random.default_rng(2).uniform(0, 1, (2, 3)).astype(np.float32)
  np.testing.assert_allclose(_products(90, rate)[2], _products(0, rate)[2], rtol=1e-4, atol=1e-4)


def test_rates_start_as_a_geometric_row_alike_in_all_heads():
  rate = lrpe.rates(81.0)(jax.random.key(0), (2, 4))
  np.testing.assert_allclose(rate, np.tile([1, 1 / 3, 1 / 9, 1 / 27], (2, 1)), rtol=1e-6)
