"""Algorithms written out as loops against their filters, and the guards of means that are none."""

import math
import time

import numpy as np
import pytest

from layers.in_context import closed_forms as cf
from layers.in_context import filters, oracles


def _prompts(seed, P=5, n=7, d=4, noise=0.3):
  draw = np.random.default_rng(seed)
  x, w = draw.standard_normal((P, n, d)), draw.standard_normal((P, d))
  return x, np.einsum("pnd,pd->pn", x, w) + noise * draw.standard_normal((P, n))


def _near(got, want, bound=1e-10):
  np.testing.assert_allclose(got, want, rtol=bound, atol=bound)


def test_filters_are_the_solutions_of_their_normal_equations():
  x, y = _prompts(0)
  found = oracles.decompose(x, y)
  ridge = [np.linalg.solve(a.T @ a + 0.7 * np.eye(4), a.T @ b) for a, b in zip(x, y)]
  _near(oracles.weights(found, filters.ridge(found.l_PD, 0.7)), ridge)
  plain = [np.linalg.lstsq(a, b, rcond=None)[0] for a, b in zip(x, y)]
  _near(oracles.weights(found, filters.least_squares(found.l_PD)), plain)


def test_too_few_pairs_give_the_fit_of_least_norm():
  x, y = _prompts(1, n=3, d=6)
  found = oracles.decompose(x, y)
  _near(oracles.weights(found, filters.least_squares(found.l_PD)), [np.linalg.pinv(a) @ b for a, b in zip(x, y)])


@pytest.mark.parametrize("own", [False, True], ids=["global", "per_prompt"])
def test_gradient_descent_is_its_steps(own):
  x, y = _prompts(2)
  found = oracles.decompose(x, y)
  rates = filters.stable_rates(found.l_PD, 7, 3) if own else np.array([0.3, 0.1, 0.2])
  w = np.zeros((5, 4))
  for k in range(3):
    gradient = np.einsum("pnd,pn->pd", x, np.einsum("pnd,pd->pn", x, w) - y) / 7
    w = w - np.reshape(rates[k], (-1, 1)) * gradient
  _near(oracles.weights(found, filters.gradient_descent(found.l_PD, 7, rates)), w)


def test_newton_is_its_iterations_and_squares_its_error():
  x, y = _prompts(3)
  found = oracles.decompose(x, y)
  a = x.swapaxes(1, 2) @ x
  m = a / np.linalg.norm(a @ a, axis=(1, 2))[:, None, None]
  for k in range(5):
    want = np.einsum("pde,pe->pd", m, np.einsum("pnd,pn->pd", x, y))
    _near(oracles.weights(found, filters.newton(found.l_PD, k)), want)
    error, m = np.eye(4) - a @ m, 2 * m - m @ a @ m
    _near(np.eye(4) - a @ m, error @ error)
    _near(m, m.swapaxes(1, 2))


def test_many_newton_steps_are_least_squares():
  found = oracles.decompose(*_prompts(4))
  exact = oracles.weights(found, filters.least_squares(found.l_PD))
  _near(oracles.weights(found, filters.newton(found.l_PD, 40)), exact, 1e-8)


def test_gd_plus_plus_is_its_recursion_and_gradient_descent_without_gamma():
  x, y = _prompts(5)
  found, rates, gammas = oracles.decompose(x, y), [0.3, 0.2], [0.15, 0.1]
  inputs, left, answer, query = x, y, np.zeros((5, 4)), np.broadcast_to(np.eye(4), (5, 4, 4))
  for rate, gamma in zip(rates, gammas):
    s, b = inputs.swapaxes(1, 2) @ inputs / 7, np.einsum("pnd,pn->pd", inputs, left) / 7
    answer = answer + rate * np.einsum("pqd,pd->pq", query, b)
    left = left - rate * np.einsum("pnd,pd->pn", inputs, b)
    inputs, query = inputs - gamma * inputs @ s, query - gamma * query @ s
  _near(oracles.weights(found, filters.gd_plus_plus(found.l_PD, 7, rates, gammas)), answer)
  _near(filters.gd_plus_plus(found.l_PD, 7, rates, [0, 0]), filters.gradient_descent(found.l_PD, 7, rates))


def test_the_nearest_neighbour_of_a_pair_is_itself_and_all_of_them_are_the_mean():
  x, y = _prompts(6)
  _near(oracles.nearest(x, y, x[:, 2], k=1), y[:, 2])
  _near(oracles.nearest(x, y, x[:, 2], k=99), y.mean(1))


def test_averaged_risks_are_the_closed_forms():
  n, d, noise = 9, 4, 0.5
  l = filters.wishart_eigenvalues(n, d, 20_000, seed=7)
  def agrees(left, want):
    found = filters.estimate(filters.risks(l, left, noise))
    assert 0 < found.standard_error < 0.05 and abs(found.mean - want) < 4 * found.standard_error
  agrees(filters.gradient_descent(l, n, [0.4]), cf.risk_of(0.4 * np.eye(d), np.eye(d), n, noise))
  agrees(filters.gradient_descent(l, n, [0.4, 0.4]), cf.two_step_risk(0.4, n, d, noise))
  found = filters.least_squares_estimate(l, n, noise)
  assert abs(found.mean - cf.least_squares_risk(n, d, noise)) < 4 * found.standard_error


def test_too_few_pairs_leave_the_directions_they_do_not_span():
  l = filters.wishart_eigenvalues(3, 8, 2000, seed=8)
  assert np.all(np.sum(l == 0, 1) == 5)
  assert filters.least_squares_estimate(l, 3).mean == 5.0
  found = filters.estimate(filters.risks(l, filters.ridge(l, 1e-9), 1e-9))
  np.testing.assert_allclose(found.mean, 5.0, rtol=1e-6)


def test_a_skewed_covariance_weighs_the_directions():
  sigma, n = np.diag([3.0, 1.0, 0.2]), 6
  x = np.random.default_rng(9).standard_normal((20_000, n, 3)) @ np.sqrt(sigma)
  l, c = filters.spectrum(x, sigma)
  found = filters.estimate(filters.risks(l, filters.gradient_descent(l, n, [0.2]), 0.4, c))
  assert abs(found.mean - cf.risk_of(0.2 * np.eye(3), sigma, n, 0.4)) < 4 * found.standard_error


@pytest.mark.parametrize("n", [3, 4, 5])
def test_no_mean_of_an_infinite_risk_is_accepted(n):
  l = filters.wishart_eigenvalues(n, 4, 500, seed=10)
  assert filters.least_squares_estimate(l, n, 0.1) == (math.inf, math.inf)


def test_a_mean_without_variance_has_no_standard_error():
  l = filters.wishart_eigenvalues(7, 4, 500, seed=11)
  found = filters.least_squares_estimate(l, 7, 0.1)
  assert math.isfinite(found.mean) and found.standard_error == math.inf


def test_a_mean_that_one_prompt_makes_has_no_standard_error():
  l = filters.wishart_eigenvalues(20, 10, 2000, seed=12)
  found = filters.estimate(filters.risks(l, filters.gradient_descent(l, 20, [0.8] * 64)))
  assert found.standard_error == math.inf
  own = filters.gradient_descent(l, 20, filters.stable_rates(l, 20, 64))
  assert filters.estimate(filters.risks(l, own)).standard_error < 0.1


def test_float32_prompts_are_computed_in_float64():
  x, y = (np.float32(part) for part in _prompts(13, n=4, d=4))
  found = oracles.decompose(x, y)
  got = oracles.weights(found, filters.least_squares(found.l_PD))
  assert got.dtype == np.float64
  _near(got, np.linalg.solve(x.astype(np.float64), y.astype(np.float64)[..., None])[..., 0], 1e-7)


def test_a_table_of_twenty_thousand_prompts_takes_seconds():
  begun = time.process_time()
  l = filters.wishart_eigenvalues(100, 20, 20_000)
  for steps in (1, 8, 64):
    filters.estimate(filters.risks(l, filters.gradient_descent(l, 100, filters.stable_rates(l, 100, steps)), 0.1))
    filters.estimate(filters.risks(l, filters.newton(l, steps), 0.1))
  assert time.process_time() - begun < 10


@pytest.mark.parametrize("ask, match", [
    (lambda: oracles.decompose(np.ones((2, 3)), np.ones(3)), r"x of shape \(2, 3\) and y of shape \(3,\)"),
    (lambda: oracles.decompose(np.ones((2, 0, 3)), np.ones((2, 0))), r"n and d at least 1"),
    (lambda: oracles.decompose(1j * np.ones((1, 2, 3)), np.ones((1, 2))), r"dtype=complex128 must be of real"),
    (lambda: oracles.decompose(np.full((1, 2, 3), np.nan), np.ones((1, 2))), r"6 of 6 numbers are not finite"),
    (lambda: filters.ridge(np.ones((1, 2)), 0.0), r"strength=0.0 must be above 0"),
    (lambda: filters.wishart_eigenvalues(0, 4, 100), r"n=0 pairs and d=4"),
    (lambda: filters.wishart_eigenvalues(4, 4, 1), r"prompts=1 must be at least 2"),
    (lambda: filters.risks(np.ones((1, 2)), np.ones((1, 2)), -1.0), r"noise=-1.0 must be a variance"),
    (lambda: oracles.nearest(*_prompts(14), np.ones((5, 4)), k=0), r"k=0 neighbours"),
])
def test_what_is_no_prompt_is_refused_with_the_numbers(ask, match):
  with pytest.raises(ValueError, match=match):
    ask()
