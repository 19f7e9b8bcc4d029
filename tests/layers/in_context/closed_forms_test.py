"""Formulas against each other, against their gradients, and against draws in float64."""

import math

import numpy as np
import pytest

from layers.in_context import closed_forms as cf
from layers.in_context import oracles

SKEWED = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])


def _prompts(seed, count, n, sigma, noise, weight):
  """Returns (x, y, query, target of the query) of Gaussian prompts."""
  draw, d = np.random.default_rng(seed), len(sigma)
  root, spread = np.linalg.cholesky(sigma), np.linalg.cholesky(weight)
  x, q = draw.standard_normal((count, n, d)) @ root.T, draw.standard_normal((count, d)) @ root.T
  w = draw.standard_normal((count, d)) @ spread.T
  y = np.einsum("pnd,pd->pn", x, w) + noise**0.5 * draw.standard_normal((count, n))
  return x, y, q, np.sum(q * w, 1)


def _agrees(values, want, errors=4.0):
  assert abs(values.mean() - want) < errors * values.std() / len(values) ** 0.5, (values.mean(), want)


@pytest.mark.parametrize("n, d, noise", [(7, 3, 0.0), (5, 3, 1.0), (1, 3, 0.5)])
def test_risks_of_single_steps_are_those_of_drawn_prompts(n, d, noise):
  x, y, q, target = _prompts(0, 40_000, n, np.eye(d), noise, np.eye(d))
  guess = np.sum(oracles.averaging(x, y) * q, 1)
  _agrees((guess - target) ** 2, cf.averaging_risk(n, d, noise))
  _agrees((cf.one_step_rate(n, d, noise) * guess - target) ** 2, cf.one_step_risk(n, d, noise))


@pytest.mark.parametrize("weight", [np.eye(3), np.linalg.inv(SKEWED)], ids=["zhang", "mahankali"])
def test_the_best_preconditioner_has_the_risk_of_drawn_prompts_and_no_gradient(weight):
  gamma = cf.best_preconditioner(SKEWED, 6, 0.5, weight)
  assert np.abs(cf.risk_gradient(gamma, SKEWED, 6, 0.5, weight)).max() < 1e-12
  x, y, q, target = _prompts(1, 40_000, 6, SKEWED, 0.5, weight)
  guess = np.sum(oracles.preconditioned(x, y, gamma) * q, 1)
  _agrees((guess - target) ** 2, cf.risk_of(gamma, SKEWED, 6, 0.5, weight))


def test_the_gradient_is_the_slope_of_the_risk():
  draw = np.random.default_rng(2)
  gamma, way = draw.standard_normal((2, 3, 3))
  rise = [cf.risk_of(gamma + h * way, SKEWED, 6, 0.5) for h in (1e-5, -1e-5)]
  slope = np.sum(cf.risk_gradient(gamma, SKEWED, 6, 0.5) * way)
  np.testing.assert_allclose((rise[0] - rise[1]) / 2e-5, slope, rtol=1e-6)


def test_preconditioners_of_both_papers_are_the_general_one():
  n, noise, d = 9, 0.7, 3
  zhang = np.linalg.inv((n + 1) / n * SKEWED + (np.trace(SKEWED) + noise) / n * np.eye(d))
  np.testing.assert_allclose(cf.best_preconditioner(SKEWED, n, noise), zhang, rtol=1e-12)
  inverse = np.linalg.inv(SKEWED)
  mahankali = n / (n + d + 1 + noise) * inverse
  np.testing.assert_allclose(cf.best_preconditioner(SKEWED, n, noise, inverse), mahankali, rtol=1e-12)


def test_the_preconditioner_turns_with_the_inputs():
  turn = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
  turned = cf.best_preconditioner(turn @ SKEWED @ turn.T, 6)
  np.testing.assert_allclose(turned, turn @ cf.best_preconditioner(SKEWED, 6) @ turn.T, rtol=1e-10)


def test_the_isotropic_preconditioner_is_the_best_rate_and_tends_to_one():
  np.testing.assert_allclose(cf.best_preconditioner(np.eye(4), 7, 0.3), cf.one_step_rate(7, 4, 0.3) * np.eye(4))
  np.testing.assert_allclose(cf.risk_of(cf.one_step_rate(7, 4, 0.3) * np.eye(4), np.eye(4), 7, 0.3),
                             cf.one_step_risk(7, 4, 0.3))
  assert abs(cf.one_step_rate(10**9, 4) - 1) < 1e-8


def test_uniform_inputs_have_the_rate_of_von_oswald():
  variance = 1 / 12  # of a number in (-1/2, 1/2)
  np.testing.assert_allclose(cf.one_step_rate(10, 10, 0, variance, 1.8), 6.0606, atol=1e-4)
  np.testing.assert_allclose(cf.one_step_risk(10, 10, 0, variance, 1.8) / 2, 0.20623, atol=1e-5)


def test_wishart_moments_are_those_of_drawn_matrices():
  x = np.random.default_rng(4).standard_normal((20_000, 5, 3))
  l = np.linalg.eigvalsh(x.swapaxes(1, 2) @ x / 5)
  for power, want in enumerate(cf.wishart_moments(5, 3), 1):
    _agrees(np.sum(l**power, 1), want)


@pytest.mark.parametrize("n, d, noise, want", [
    (10, 4, 0.5, 0.4), (3, 8, 0.0, 5.0), (3, 8, 0.5, 5.375), (9, 8, 0.0, 0.0), (9, 8, 0.1, math.inf),
    (8, 8, 0.1, math.inf), (7, 8, 0.1, math.inf), (7, 8, 0.0, 1.0)])
def test_least_squares_is_infinite_between_too_few_and_enough_pairs(n, d, noise, want):
  assert cf.least_squares_risk(n, d, noise) == pytest.approx(want)


@pytest.mark.parametrize("n, d", [(20, 5), (3, 11), (100, 1)])
def test_twice_the_covariance_makes_a_trained_rule_as_good_as_zero(n, d):
  assert cf.shifted_risk(2.0, n, n, d) == pytest.approx(2.0 * d, rel=1e-12)
  trained = cf.best_preconditioner(np.eye(d), n)
  for c, m in ((0.5, n), (3.0, 4 * n)):
    np.testing.assert_allclose(cf.shifted_risk(c, n, m, d), cf.risk_of(trained, c * np.eye(d), m), rtol=1e-10)


def test_the_test_risk_of_zhang_averages_to_the_general_one():
  n, m, total = 6, 9, 0.0
  draws = np.random.default_rng(5).standard_normal((4000, 3))
  for w in draws:
    spread = (w @ SKEWED @ w) * SKEWED + np.outer(SKEWED @ w, SKEWED @ w)
    total += cf.zhang_test_risk(w, spread, SKEWED, n, m)
  want = cf.risk_of(cf.best_preconditioner(SKEWED, n), SKEWED, m)
  np.testing.assert_allclose(total / len(draws), want, rtol=0.05)


def test_the_limit_of_the_flow_is_balanced_and_multiplies_to_the_preconditioner():
  scalar, block = cf.zhang_limit(SKEWED, 6)
  np.testing.assert_allclose(scalar * block, cf.best_preconditioner(SKEWED, 6), rtol=1e-12)
  np.testing.assert_allclose(scalar, np.linalg.norm(block), rtol=1e-12)


def test_random_covariances_leave_a_gain_of_a_third():
  assert cf.random_covariance_gain(10**9, 5) == pytest.approx(1 / 3)
  draw, n, d = np.random.default_rng(6), 8, 3
  l = draw.exponential(size=(200_000, d))
  moment = (n + 1) / n * l**3 + np.sum(l, 1, keepdims=True) / n * l**2
  np.testing.assert_allclose(np.sum(l**2) / np.sum(moment), cf.random_covariance_gain(n, d), rtol=0.03)


@pytest.mark.parametrize("ask, match", [
    (lambda: cf.one_step_rate(0, 3), r"n=0 pairs and d=3 inputs must both be at least 1"),
    (lambda: cf.least_squares_risk(3, 0), r"n=3 pairs and d=0 inputs"),
    (lambda: cf.averaging_risk(3, 3, -0.5), r"noise=-0.5 must be a variance"),
    (lambda: cf.best_preconditioner(np.diag([1.0, 0.0]), 4), r"sigma is singular: eigenvalues from 0 to 1"),
    (lambda: cf.best_preconditioner(np.eye(2), 4, 0, np.zeros((2, 2))), r"weight is singular"),
    (lambda: cf.risk_of(np.eye(2), np.array([[1.0, 0.9], [0.0, 1.0]]), 4), r"sigma must be symmetric.* by 0.9"),
    (lambda: cf.shifted_risk(-1.0, 4, 4, 2), r"c=-1.0, the covariance"),
    (lambda: cf.one_step_rate(4, 2, 0, variance=0.0), r"variance=0.0 must be above 0"),
])
def test_what_has_no_risk_is_refused_with_the_numbers(ask, match):
  with pytest.raises(ValueError, match=match):
    ask()
