"""The matrices against what they are for: Legendre coefficients, a normal part, steps in time."""

import numpy as np
from numpy.polynomial import legendre
import pytest
import scipy.linalg

from layers import hippo


def test_normal_plus_low_rank_is_the_matrix():
  N = 8
  A, B = hippo.legs(N)
  Lambda, P, B_M, V = hippo.legs_modes(N)
  whole_V = np.concatenate([V, V.conj()], axis=1)
  whole_P = np.concatenate([P, P.conj()])
  whole = np.diag(np.concatenate([Lambda, Lambda.conj()])) - np.outer(whole_P, whole_P.conj())
  np.testing.assert_allclose(whole_V @ whole @ whole_V.conj().T, A, atol=1e-9)
  np.testing.assert_allclose(whole_V.conj().T @ whole_V, np.eye(N), atol=1e-10)
  np.testing.assert_allclose(2 * (V @ B_M).real, B, atol=1e-10)
  assert np.all(Lambda.real == -0.5) and np.all(Lambda.imag > 0)


def test_legs_is_lower_triangular_with_the_integers_as_rates():
  A, _ = hippo.legs(6)
  np.testing.assert_array_equal(np.triu(A, 1), 0)
  np.testing.assert_array_equal(np.diag(A), -np.arange(1, 7))
  np.testing.assert_allclose(A[3, 1], -np.sqrt(7 * 3))


def test_the_exponential_is_that_of_scipy():
  for A in (hippo.legs(6)[0], hippo.legt(9, 4.0)[0], np.zeros((3, 3))):
    want = scipy.linalg.expm(A)
    np.testing.assert_allclose(hippo.expm(A), want, atol=1e-11 * np.abs(want).max())


@pytest.mark.parametrize("system", [hippo.legs(6), hippo.legt(6, 20.0)], ids=["legs", "legt"])
def test_rules_of_stepping_converge_with_their_order(system):
  exact = hippo.zoh(*system, 1e-2)
  def error(step, alpha):
    A, B = hippo.bilinear(*system, step, alpha)
    want, _ = hippo.zoh(*system, step)
    return np.linalg.norm(A - want)
  np.testing.assert_allclose(exact[0], scipy.linalg.expm(1e-2 * system[0]), atol=1e-12)
  # The error of one step falls as its square, of the trapezoid as its cube.
  for alpha, power in ((0.0, 2), (0.5, 3), (1.0, 2)):
    assert abs(np.log2(error(2e-3, alpha) / error(1e-3, alpha)) - power) < 0.1


def test_euler_and_the_backward_rule_are_the_ends_of_the_bilinear_one():
  A, B = hippo.legs(5)
  eye, step = np.eye(5), 0.1
  forward, backward = hippo.bilinear(A, B, step, 0.0), hippo.bilinear(A, B, step, 1.0)
  np.testing.assert_allclose(forward[0], eye + step * A, atol=1e-13)
  np.testing.assert_allclose(forward[1], step * B, atol=1e-13)
  np.testing.assert_allclose(backward[0], np.linalg.inv(eye - step * A), atol=1e-12)
  np.testing.assert_allclose(backward[1], np.linalg.inv(eye - step * A) @ (step * B), atol=1e-12)


def test_two_half_steps_of_a_held_input_are_one():
  A, B = hippo.zoh(*hippo.legs(5), 0.2)
  half_A, half_B = hippo.zoh(*hippo.legs(5), 0.1)
  np.testing.assert_allclose(half_A @ half_A, A, atol=1e-12)
  np.testing.assert_allclose(half_A @ half_B + half_B, B, atol=1e-12)


def test_the_reader_is_the_shifted_legendre_polynomials():
  share = np.linspace(0, 1, 7)
  want = legendre.legvander(2 * share - 1, 5)
  np.testing.assert_allclose(hippo.legt_reader(6, share), want, atol=1e-13)
  assert hippo.legt_reader(1, share).shape == (7, 1)


def test_a_window_reads_its_past_better_the_higher_its_order():
  theta, T = 40.0, 200
  u = np.sin(2 * np.pi * np.arange(T) / 50) + 0.5 * np.cos(2 * np.pi * np.arange(T) / 31)
  delays = np.array([5, 15, 25, 35])
  errors = []
  for order in (4, 8, 12):
    A, B = hippo.zoh(*hippo.legt(order, theta), 1.0)
    assert np.abs(np.linalg.eigvals(A)).max() < 1
    m, read = np.zeros(order), []
    for value in u:
      m = A @ m + B * value
      # A held input is, on average, half a token old.
      read.append(hippo.legt_reader(order, (delays + 0.5) / theta) @ m)
    want = np.stack([u[T - 60 - d:T - d] for d in delays], axis=1)
    errors.append(np.sqrt(np.mean((np.array(read)[-60:] - want) ** 2)))
  # That the input is held from token to token leaves about 1 % whatever the order.
  assert errors[0] > 3 * errors[1] and errors[2] < 0.03


def test_an_odd_order_has_no_pairs():
  with pytest.raises(ValueError, match="order=5 must be even"):
    hippo.legs_modes(5)
