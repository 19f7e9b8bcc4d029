"""The likelihood of a mixture against its definition, its flat direction, and the distance between mixtures."""

import functools
import types

import jax
import numpy as np
import pytest
from scipy import optimize, special, stats

from research import gaussian_experts as ge
from research.tasks.gaussian_experts import GaussianExperts

EVERY = pytest.mark.parametrize("gate", ge.GATES)
START = ge.pack(ge.split(ge.TRUTH)) + 0.2 * np.random.default_rng(1).standard_normal(14)


def _data(gate, count=200):
  return ge.draw(ge.TRUTH, count, gate, np.random.default_rng(0))


@EVERY
def test_the_objective_is_the_density_and_its_slope(gate):
  (x_N, y_N), mixture = _data(gate, 20), ge.unpack(START)
  each = []
  for x, y in zip(x_N, y_N):
    weights = np.exp((ge.GATES[gate][0](mixture.w_E * x) + mixture.b_E) / mixture.tau)
    each.append(-np.log(weights / weights.sum() @ stats.norm.pdf(y, mixture.a_E * x + mixture.c_E, mixture.v_E**0.5)))
  value, gradient = ge.objective(START, x_N, y_N, gate)
  np.testing.assert_allclose(value, np.mean(each), rtol=1e-12)
  slopes = optimize.approx_fprime(START, lambda p: ge.objective(p, x_N, y_N, gate)[0], 1e-7)
  np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-5)


@EVERY
def test_only_a_plain_gate_has_a_scale_that_no_data_can_tell(gate):
  x_N, y_N = _data(gate)
  mixture = ge.unpack(START)
  larger = mixture._replace(w_E=3 * mixture.w_E, b_E=3 * mixture.b_E, tau=3 * mixture.tau)
  moved = abs(ge.objective(ge.pack(larger), x_N, y_N, gate)[0] - ge.objective(START, x_N, y_N, gate)[0])
  assert moved < 1e-12 if gate == "identity" else moved > 1e-3


@EVERY
def test_a_fit_is_likelier_than_its_start_and_the_truth_and_is_stationary(gate):
  x_N, y_N = _data(gate)
  fitted = ge.pack(ge.fit(ge.unpack(START), x_N, y_N, gate))
  value, gradient = ge.objective(fitted, x_N, y_N, gate)
  assert value < min(ge.objective(p, x_N, y_N, gate)[0] for p in (START, ge.pack(ge.split(ge.TRUTH))))
  low_P, high_P = np.array(ge.bounds(3)).T
  # At a bound the descent may push on, outwards only.
  assert np.all((np.abs(gradient) < 1e-3) | (fitted == np.where(gradient > 0, low_P, high_P)))


def test_cutting_an_expert_in_two_is_no_error_and_no_other_density():
  x_N, y_N = _data("tanh")
  cut = ge.split(ge.TRUTH)
  assert ge.error(cut, ge.TRUTH) < 1e-12 and ge.error(ge.scaled(cut), ge.scaled(ge.TRUTH)) < 1e-12
  np.testing.assert_allclose(*(ge.objective(ge.pack(m), x_N, y_N, "tanh")[0] for m in (cut, ge.TRUTH)), rtol=1e-12)


def test_the_error_counts_every_distance_once_and_an_empty_cell_as_one():
  moved = ge.TRUTH._replace(tau=0.3 * np.e, b_E=ge.TRUTH.b_E * np.e, c_E=ge.TRUTH.c_E + [0.01, -0.02])
  np.testing.assert_allclose(ge.error(moved, ge.TRUTH), 1.03, rtol=1e-9)
  alone = ge.Mixture(*(z[1:] if np.ndim(z) else z for z in ge.TRUTH))
  np.testing.assert_allclose(ge.error(alone, ge.TRUTH), 1.0, rtol=1e-9)


def test_the_slope_of_a_power_is_its_exponent():
  counts = np.array([10.0, 100.0, 1000.0])
  np.testing.assert_allclose(ge.slope(counts, counts[:, None]**-0.25 * np.ones((3, 2))), -0.25, rtol=1e-12)


@EVERY
def test_both_draws_are_of_the_mixture(gate):
  task = GaussianExperts(gate=gate, batch_size=2048)
  batch = jax.tree.map(np.asarray, jax.jit(functools.partial(task.batch, "train", 0))())
  assert np.all(batch["inputs"][:, 1, 1] == 0)
  pairs = [(batch["inputs"][:, 0, 0], batch["inputs"][:, 0, 1]), (batch["inputs"][:, 1, 0], batch["labels"][:, 0])]
  for x_N, y_N in [*pairs, ge.draw(ge.TRUTH, 2048, gate, np.random.default_rng(2))]:
    z_EN = (ge.GATES[gate][0](ge.TRUTH.w_E[:, None] * x_N) + ge.TRUTH.b_E[:, None]) / ge.TRUTH.tau
    mean_EN, gate_EN = ge.TRUTH.a_E[:, None] * x_N + ge.TRUTH.c_E[:, None], special.softmax(z_EN, axis=0)
    # y of the right law has a uniform distribution function, given x.
    u_N = np.sum(gate_EN * stats.norm.cdf((y_N - mean_EN) / ge.TRUTH.v_E[:, None]**0.5), axis=0)
    assert stats.kstest(u_N, "uniform").pvalue > 1e-3 and abs(np.corrcoef(u_N, x_N)[0, 1]) < 0.1


def test_the_measure_is_one_of_the_key():
  task = GaussianExperts(samples=(20, 40), repeats=1)
  first, again, other = (task.measure(None, types.SimpleNamespace(key=jax.random.key(k))) for k in (0, 0, 1))
  assert first == again != other
  np.testing.assert_allclose(first["mle/slope"], np.log2(first["mle/error_40"] / first["mle/error_20"]), rtol=1e-9)


@pytest.mark.parametrize("changes, match", [
    ({"gate": "relu"}, "gate='relu' must be one of identity"), ({"samples": (100, 100)}, "samples=.* two sizes or more"),
    ({"samples": (100, 5)}, "samples=5 must be at least 10"), ({"repeats": 0}, "repeats=0 must be at least 1")])
def test_what_cannot_be_fitted_is_refused(changes, match):
  with pytest.raises(ValueError, match=match):
    GaussianExperts(**changes)
