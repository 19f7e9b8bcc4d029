"""Rotary positions: rotations, only differences matter, and accuracy far out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import rope

rotate = jax.jit(rope.rotate, static_argnames="theta")


def _by_hand(x, position, theta=10_000.0):
  """Each pair as one complex number, turned in float64."""
  half = x.shape[-1] // 2
  z = x[..., :half].astype(np.float64) + 1j * x[..., half:]
  rate = theta ** (-2.0 * np.arange(half) / x.shape[-1])
  z = z * np.exp(1j * position[:, :, None, None] * rate)
  return np.concatenate([z.real, z.imag], -1)


def _heads(seed, B=2, T=5, H=3, K=8):
  return np.random.default_rng(seed).standard_normal((B, T, H, K), np.float32)


def _rel(got, want):
  return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("theta", [10_000.0, 50.0])
def test_every_pair_turns_by_its_angle(theta):
  x, position = _heads(0), np.array([[0, 1, 2, 7, 300], [5, 0, 31, 8, 1]])
  assert _rel(rotate(x, position, theta=theta), _by_hand(x, position, theta)) < 1e-5


def test_position_zero_is_the_identity():
  x = _heads(1)
  np.testing.assert_array_equal(rotate(x, np.zeros((2, 5), int)), x)


def test_a_rotation_keeps_every_norm():
  x, position = _heads(2), np.arange(10).reshape(2, 5) * 1000
  np.testing.assert_allclose(
      np.linalg.norm(rotate(x, position), axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)


def test_queries_and_keys_meet_through_the_difference_of_positions_only():
  q, k = _heads(3), _heads(4)
  at = lambda x, p: np.asarray(rotate(x, np.full((2, 5), p)), np.float64)
  meet = lambda p, r: np.sum(at(q, p) * at(k, r), -1)
  for offset in (3, 1000):
    np.testing.assert_allclose(meet(7 + offset, 2 + offset), meet(7, 2), atol=1e-3)
  assert np.abs(meet(8, 2) - meet(7, 2)).max() > 0.1


def test_a_rotation_and_its_reverse_cancel():
  x, position = _heads(5), np.arange(10).reshape(2, 5)
  np.testing.assert_allclose(rotate(rotate(x, position), -position), x, atol=2e-6)


def test_position_100_000_is_accurate_to_the_last_place_of_its_float32_angle():
  x, position = _heads(6, K=64), 100_000 + np.arange(10).reshape(2, 5)
  # Half a unit in the last place of 1e5 is 4e-3 radians, and the rate adds as much.
  assert _rel(rotate(x, position), _by_hand(x, position)) < 2e-3


def test_bfloat16_is_turned_in_float32():
  x, position = _heads(7).astype(jnp.bfloat16), np.arange(10).reshape(2, 5) * 500
  got = rotate(x, position)
  assert got.dtype == jnp.bfloat16
  want = _by_hand(np.asarray(x, np.float32), position)
  np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-8, atol=2e-3)


def test_an_odd_width_is_refused_with_the_way_out():
  with pytest.raises(ValueError, match=r"head_dim=7 must be even.*rope_theta=0"):
    rope.rotate(_heads(8, K=7), np.zeros((2, 5), int))
