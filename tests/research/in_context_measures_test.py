"""What is measured of a model, on models whose measures are known: constructed layers, and rules written down."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.in_context import closed_forms, constructions
from research import config as configs
from research import in_context_measures as measures
from research import program as programs
from research.errors import ConfigError

measures_small = pytest.fixture(autouse=True)(lambda monkeypatch: monkeypatch.setattr(measures, "PROMPTS", 2048))


@functools.cache
def _program(experiment, *overrides):
  config = configs.load(f"{experiment}:smoke")[2]
  configs.override(config, dict(overrides))
  return programs.make(config)


def _measured(program, mixer):
  """Returns the measures of a model with these parameters of its one layer."""
  state = program.init(0)
  (run,) = state.params["stack"]
  mixer = jax.tree.map(jnp.float32, mixer)
  return program.task.measure(program, state.replace(params={"stack": {run: {"block_0": {"mixer": mixer}}}}))


def test_the_best_step_written_down_has_no_excess_and_its_sensitivity():
  program = _program("one_step_optimal")
  eta = closed_forms.one_step_rate(20, 5, 0.5)
  found = _measured(program, constructions.kernels(constructions.gradient_step(5, 20, eta)))
  assert abs(found["in_context/excess"]) < 1e-5 and found["in_context/sensitivity_cosine"] > 1 - 1e-6
  assert found["in_context/preconditioner_error"] < 1e-6 and found["in_context/anisotropy"] < 1e-6
  assert found["construction/gd_error"] < 2e-6 and found["construction/gd_plus_plus_error"] < 2e-6
  np.testing.assert_allclose(found["in_context/risk"], closed_forms.one_step_risk(20, 5, 0.5), rtol=1e-4)


def test_a_wrong_rate_shows_in_every_number_but_the_cosine():
  program = _program("one_step_optimal")
  eta = closed_forms.one_step_rate(20, 5, 0.5)
  found = _measured(program, constructions.kernels(constructions.gradient_step(5, 20, 1.2 * eta)))
  want = closed_forms.risk_of(1.2 * eta * np.eye(5), np.eye(5), 20, 0.5) / closed_forms.one_step_risk(20, 5, 0.5) - 1
  np.testing.assert_allclose(found["in_context/excess"], want, rtol=0.5)  # 2048 prompts
  np.testing.assert_allclose(found["in_context/preconditioner_error"], 0.2, rtol=1e-5)
  assert found["in_context/sensitivity_cosine"] > 1 - 1e-6 and found["in_context/prediction_difference"] > 0.05


def test_the_closed_form_of_zhang_is_as_bad_as_zero_on_twice_the_covariance():
  program = _program("linear_in_context", ("task.covariance", "skewed"))
  scalar, block = closed_forms.zhang_limit(program.task.covariances()[0], 20)
  pv, kq = np.zeros((2, 6, 6))
  pv[-1, -1], kq[:5, :5] = scalar, block.T
  found = _measured(program, {"pv": {"kernel": pv}, "kq": {"kernel": kq}})
  assert found["in_context/preconditioner_error"] < 1e-6 and abs(found["in_context/excess"]) < 1e-5
  gamma, sigma = closed_forms.best_preconditioner(program.task.covariances()[0], 20), program.task.covariances()[0]
  for c in (2, 3):
    want = closed_forms.risk_of(gamma, c * sigma, 20) / np.trace(c * sigma)
    np.testing.assert_allclose(found[f"in_context/shift_ratio_{c}"], want, rtol=1e-5)
  assert found["flow/factor_error"] < 0.01


def test_two_scalar_layers_are_compared_with_two_steps_of_the_best_rate():
  program = _program("gd_by_attention", ("model.mixer.form", "gd"), ("model.mixer.steps", 2))
  l = np.linalg.eigvalsh((lambda x: x.swapaxes(1, 2) @ x)(np.random.default_rng(0).uniform(-.5, .5, (4000, 10, 10))))
  found = _measured(program, {"eta": measures.best_rate(l, 10, 2)})
  assert abs(found["in_context/excess"]) < 1e-3 and "in_context/anisotropy" not in found


def test_a_network_is_compared_with_the_step_that_fits_it_best():
  program = _program("one_step_optimal", ("task.response", "relu_network"))
  found = {eta: _measured(program, constructions.kernels(constructions.gradient_step(5, 20, eta)))["in_context/excess"]
           for eta in (0.3, 0.9)}
  assert all(excess > 0 for excess in found.values())


def test_prompts_with_many_predictions_are_refused():
  program = _program("one_step_optimal", ("task.encoding", "interleaved"))
  with pytest.raises(ConfigError, match="encoding='interleaved': only 'concatenated'"):
    program.task.measure(program, None)
