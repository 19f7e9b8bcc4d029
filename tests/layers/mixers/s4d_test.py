"""The mixer against its equations in float64, token by token, and its two forms against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import hippo
from layers.mixers.s4d import S4D
from tests.layers import toy
from tests.layers.mixers import by_hand

F, N = 3, 4


@functools.cache
def _layer(form="conv", modes="legs"):
  """Returns (layer, jitted apply, jitted gradients of a weighted sum of outputs and state)."""
  layer = S4D(channels=F, order=N, form=form, modes=modes)
  def score(params, x, state, dy):
    y, final = layer.apply(params, x, state)
    return jnp.sum(y * dy) + 0.1 * jnp.sum(final["S_BFM2"])
  return layer, jax.jit(layer.apply), jax.jit(jax.grad(score, argnums=(0, 1, 2)))


def _by_hand(params, x, state):
  p = by_hand.wide(params["params"])
  Lambda = -np.exp(p["log_rate"]) + 1j * p["frequency"]
  step = np.exp(p["log_step"])[:, None]
  A = np.exp(step * Lambda)
  B = (A - 1) / Lambda
  C = p["C"] @ [1, 1j]
  s = by_hand.wide(state)["S_BFM2"] @ [1, 1j]
  u = x @ p["value"]["kernel"] + p["value"]["bias"]
  y = np.zeros_like(u)
  for t in range(x.shape[1]):
    s = A * s + B * u[:, t, :, None]
    y[:, t] = 2 * (C * s).real.sum(-1) + p["D"] * u[:, t]
  return by_hand.gated_output(p, y), {"S_BFM2": np.stack([s.real, s.imag], -1)}


@pytest.mark.parametrize("form", ["conv", "recurrent"])
def test_the_mixer_is_the_equations_of_its_docstring(form):
  layer, run, _ = _layer(form)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  assert by_hand.error(run(params, x, state), _by_hand(params, x, state)) < 1e-5


def test_the_convolution_has_the_gradients_of_the_recurrence():
  (layer, _, conv), (_, _, recurrent) = _layer("conv"), _layer("recurrent")
  x, state, dy = by_hand.tokens(3), by_hand.state(layer, 4), by_hand.tokens(5)
  params = {"params": toy.parameters(layer, 6, x)}
  got, want = conv(params, x, state, dy), recurrent(params, x, state, dy)
  assert by_hand.error(got, jax.tree.map(np.asarray, want)) < 2e-5


def test_a_prefill_by_convolution_is_continued_token_by_token():
  layer, run, _ = _layer("conv")
  _, step, _ = _layer("recurrent")
  x = by_hand.tokens(7, T=12)
  params = {"params": toy.parameters(layer, 8, x)}
  whole, _ = run(params, x)
  y, state = run(params, x[:, :9])
  for t in range(9, 12):
    y_t, state = step(params, x[:, t:t + 1], state)
    y = np.concatenate([y, y_t], 1)
  assert by_hand.error(y, np.asarray(whole)) < 2e-5


def test_slow_steps_keep_their_digits():
  layer, run, _ = _layer("conv")
  x, state = by_hand.tokens(9), by_hand.state(layer, 10)
  params = toy.parameters(layer, 11, x) | {"log_step": np.full(F, np.log(1e-5), np.float32)}
  # exp(z) - 1 with |z| = 1e-5 would keep two digits in float32.
  assert by_hand.error(run({"params": params}, x, state), _by_hand({"params": params}, x, state)) < 1e-5


@pytest.mark.parametrize("modes, frequency", [("legs", hippo.legs_modes(N)[0].imag), ("lin", [0, np.pi])])
def test_modes_start_with_the_rates_and_frequencies_of_the_paper(modes, frequency):
  layer = _layer(modes=modes)[0]
  params = jax.jit(layer.init)(jax.random.key(0), np.zeros((1, 2, 5), np.float32))["params"]
  np.testing.assert_allclose(np.exp(params["log_rate"]), 0.5, rtol=1e-6)
  np.testing.assert_allclose(params["frequency"], np.tile(frequency, (F, 1)), rtol=1e-6)
  assert 1e-3 <= np.exp(params["log_step"]).min() and np.exp(params["log_step"]).max() <= 0.1


@pytest.mark.parametrize("fields, match", [
    (dict(order=5), "order=5 must be even"), (dict(modes="fout"), "modes='fout' must be one of legs, lin"),
    (dict(form="fft"), "form='fft' must be one of conv, recurrent"),
    (dict(step_min=0.2), "step_min=0.2 must be above 0 and at most step_max=0.1")])
def test_fields_without_a_meaning_are_refused(fields, match):
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(S4D(**fields).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
