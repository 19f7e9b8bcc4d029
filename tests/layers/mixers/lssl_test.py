"""The mixer against its equations in float64, its three views, and the gate that it contains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import dense_system, hippo
from layers.mixers import lssl
from tests.layers import toy
from tests.layers.mixers import by_hand

F, N, O = 3, 4, 2

discretise = jax.jit(lssl.discretise, static_argnums=3)
convolve = jax.jit(lssl.convolve)


@functools.cache
def _layer(form="conv", alpha=0.5, learned=False):
  """Returns (layer, jitted apply, jitted gradients of a weighted sum of outputs and state)."""
  layer = lssl.LSSL(channels=F, order=N, outputs=O, form=form, alpha=alpha, learned=learned)
  def score(params, x, state, dy):
    y, final = layer.apply(params, x, state)
    return jnp.sum(y * dy) + 0.1 * jnp.sum(final["S_BFN"])
  return layer, jax.jit(layer.apply), jax.jit(jax.grad(score, argnums=(0, 1, 2)))


def _parameters(layer, seed, x):
  params = toy.parameters(layer, seed, x)
  return {"params": params | {"log_step": params["log_step"] - 1.5}}


def _by_hand(layer, params, x, state):
  p = by_hand.wide(params["params"])
  B_N = hippo.legs(N)[1]
  u, s = by_hand.affine(p["value"], x), by_hand.wide(state)["S_BFN"].copy()
  y = np.zeros((*u.shape, O))
  for f, step in enumerate(np.exp(p["log_step"])):
    A, B = hippo.bilinear(p["A"], B_N, step, layer.alpha)
    for t in range(x.shape[1]):
      s[:, f] = s[:, f] @ A.T + u[:, t, f, None] * B
      y[:, t, f] = s[:, f] @ p["C"][f].T + p["D"][f] * u[:, t, f, None]
  return by_hand.affine(p["out"], by_hand.gelu(y.reshape(*x.shape[:2], -1))), {"S_BFN": s}


@pytest.mark.parametrize("form, alpha", [("conv", 0.5), ("recurrent", 0.5), ("conv", 1.0)])
def test_the_mixer_is_the_equations_of_its_docstring(form, alpha):
  layer, run, _ = _layer(form, alpha)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = _parameters(layer, 2, x)
  assert by_hand.error(run(params, x, state), _by_hand(layer, params, x, state)) < 1e-5


def test_the_convolution_has_the_gradients_of_the_recurrence():
  (layer, _, conv), (_, _, recurrent) = _layer("conv", learned=True), _layer("recurrent", learned=True)
  x, state, dy = by_hand.tokens(3), by_hand.state(layer, 4), by_hand.tokens(5)
  params = _parameters(layer, 6, x)
  got, want = conv(params, x, state, dy), recurrent(params, x, state, dy)
  assert np.any(want[0]["params"]["A"] != 0)
  assert by_hand.error(got, jax.tree.map(np.asarray, want)) < 2e-5


def test_a_transition_that_is_not_learned_has_no_gradient():
  layer, _, grads = _layer("conv")
  x = by_hand.tokens(7)
  d = grads(_parameters(layer, 8, x), x, by_hand.state(layer, 9), by_hand.tokens(10))[0]["params"]
  assert np.all(d["A"] == 0) and np.all(d["log_step"] != 0)


def test_one_state_with_the_backward_rule_is_a_gated_recurrence():
  draw = np.random.default_rng(11)
  z, u = draw.standard_normal(6), draw.standard_normal(6)
  x = got = 0.0
  for z_t, u_t in zip(z, u):
    A, B = discretise(-np.ones((1, 1), np.float32), np.ones(1, np.float32), np.exp(z_t, dtype=np.float32)[None], 1.0)
    got = float(A[0, 0, 0]) * got + float(B[0, 0]) * u_t
    gate = by_hand.sigmoid(z_t)
    x = (1 - gate) * x + gate * u_t
    assert abs(got - x) < 1e-6


def test_a_signal_sampled_twice_as_often_needs_half_the_step():
  """The filter is of continuous time: the outputs converge as the square of the step."""
  A, B = (m.astype(np.float32) for m in hippo.legs(N))
  C = np.random.default_rng(12).standard_normal((1, O, N), np.float32)
  def at_end(T):
    # Twice the samples of one smooth signal on [0, 1], midpoints, by half the step.
    u = np.sin(5 * (np.arange(T, dtype=np.float32) + 0.5) / T)[None, :, None]
    A_d, B_d = discretise(A, B, np.full(1, 1 / T, np.float32), 0.5)
    return np.asarray(convolve(u, A_d, B_d, C, np.zeros((1, 1, N), np.float32))[0])[0, -1, 0]
  coarse, middle, fine = at_end(8), at_end(16), at_end(32)
  ratio = np.linalg.norm(coarse - middle) / np.linalg.norm(middle - fine)
  assert 3 < ratio < 5


def test_powers_by_doubling_are_powers():
  A = np.random.default_rng(13).standard_normal((F, N, N)).astype(np.float32) / 2
  s = np.random.default_rng(14).standard_normal((2, F, N)).astype(np.float32)
  got = jax.jit(dense_system.responses, static_argnums=2)(A, s, 7)
  want = np.stack([np.einsum("fmn,xfn->xfm", np.linalg.matrix_power(A.astype(np.float64), l), s) for l in range(7)])
  assert by_hand.error(np.asarray(got), want) < 1e-6


@pytest.mark.parametrize("fields, match", [
    (dict(transition="s4"), "transition='s4' must be one of legs, legt, random"),
    (dict(form="fft"), "form='fft' must be one of conv, recurrent"),
    (dict(alpha=1.5), r"alpha=1.5 must lie in \[0, 1\]"),
    (dict(step_max=1e-4), "step_min=0.001 must be above 0 and at most step_max=0.0001")])
def test_fields_without_a_meaning_are_refused(fields, match):
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(lssl.LSSL(**fields).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
