"""The filter, the recurrence and the mixer against the dense system in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import hippo
from layers.mixers import s4
from tests.layers import toy
from tests.layers.mixers import by_hand

F, N, L = 3, 4, 16

kernel = jax.jit(s4.kernel, static_argnums=5)
dense = jax.jit(s4.dense)


@functools.cache
def _layer(form="conv"):
  """Returns (layer, jitted apply, jitted gradients of a weighted sum of outputs and state)."""
  layer = s4.S4(channels=F, order=N, length=L, form=form)
  def score(params, x, dy):
    y, final = layer.apply(params, x)
    return jnp.sum(y * dy) + 0.1 * jnp.sum(final["S_BFN"])
  return layer, jax.jit(layer.apply), jax.jit(jax.grad(score, argnums=(0, 1)))


def _parameters(layer, seed, x):
  """Steps of order 1/2: slow ones make I - A^L nearly singular, which costs float32 its digits."""
  params = toy.parameters(layer, seed, x)
  return {"params": params | {"log_step": params["log_step"] - 0.7}}


def _pairs(x):
  return np.concatenate([x, x.conj()], axis=-1)


def _system(Lambda, P, B, step):
  """Returns (A, B) of one trapezoid step of one channel over all modes and partners."""
  P = _pairs(P)
  A = np.diag(_pairs(Lambda)) - np.outer(P, P.conj())
  left = np.linalg.inv(2 / step * np.eye(len(A)) - A)
  return left @ (2 / step * np.eye(len(A)) + A), 2 * left @ _pairs(B)


def _by_hand(params, x, state):
  p = by_hand.wide(params["params"])
  Lambda, step = -np.exp(p["log_rate"]) + 1j * p["frequency"], np.exp(p["log_step"])
  P, B, C = (p[k] @ [1, 1j] for k in "PBC")
  u = by_hand.affine(p["value"], x)
  y, s_all = np.zeros_like(u), by_hand.wide(state)["S_BFN"]
  final = np.zeros_like(s_all)
  for f in range(F):
    A, b = _system(Lambda[f], P[f], B[f], step[f])
    c = _pairs(C[f]) @ np.linalg.inv(np.eye(N) - np.linalg.matrix_power(A, L))
    s = _pairs(s_all[:, f, :N // 2] + 1j * s_all[:, f, N // 2:])
    for t in range(x.shape[1]):
      s = s @ A.T + u[:, t, f, None] * b
      y[:, t, f] = (s @ c).real + p["D"][f] * u[:, t, f]
    final[:, f] = np.concatenate([s[:, :N // 2].real, s[:, :N // 2].imag], -1)
  return by_hand.gated_output(p, y), {"S_BFN": final}


@pytest.mark.parametrize("form", ["conv", "recurrent"])
def test_the_mixer_is_the_equations_of_its_docstring(form):
  layer, run, _ = _layer(form)
  x = by_hand.tokens(0)
  params = _parameters(layer, 1, x)
  assert by_hand.error(run(params, x), _by_hand(params, x, layer.init_state(2))) < 2e-5


def test_a_state_that_comes_in_is_continued():
  layer, run, _ = _layer("conv")
  x, state = by_hand.tokens(2), by_hand.state(layer, 3)
  params = _parameters(layer, 4, x)
  assert by_hand.error(run(params, x, state), _by_hand(params, x, state)) < 2e-5


def test_the_convolution_has_the_gradients_of_the_recurrence():
  (layer, _, conv), (_, _, recurrent) = _layer("conv"), _layer("recurrent")
  x, dy = by_hand.tokens(5), by_hand.tokens(6)
  params = _parameters(layer, 7, x)
  got, want = conv(params, x, dy), recurrent(params, x, dy)
  assert by_hand.error(got, jax.tree.map(np.asarray, want)) < 5e-5


@pytest.mark.parametrize("length", [16, 15], ids=["a_node_at_minus_one", "none_there"])
@pytest.mark.parametrize("step", [1e-3, 0.1])
def test_the_cauchy_filter_is_the_krylov_filter_of_hippo(length, step):
  order = 16
  Lambda, P, B, V = hippo.legs_modes(order)
  A, b = hippo.bilinear(*hippo.legs(order), step)
  C = np.random.default_rng(8).standard_normal(order)
  want, column = [], b
  for _ in range(length):
    want, column = want + [C @ column], A @ column
  tilde = (C @ (np.eye(order) - np.linalg.matrix_power(A, length))) @ V
  one = lambda z: jnp.asarray(z[None], jnp.complex64)
  got = kernel(one(Lambda), one(P), one(B), one(tilde), jnp.full(1, step), length)[:, 0]
  assert by_hand.error(np.asarray(got), np.array(want)) < 2e-5


def test_one_step_by_woodbury_is_the_dense_step():
  draw = np.random.default_rng(9)
  Lambda, P, B = (draw.standard_normal((1, N // 2, 2)) @ [1, 1j] for _ in range(3))
  Lambda = -np.abs(Lambda.real) + 1j * Lambda.imag
  A, b = dense(*(jnp.asarray(z, jnp.complex64) for z in (Lambda, P, B)), jnp.full(1, 0.3))
  want_A, want_b = _system(Lambda[0], P[0], B[0], 0.3)
  s = draw.standard_normal(N)
  whole = want_A @ _pairs(s[:N // 2] + 1j * s[N // 2:]) + want_b
  got = np.asarray(A[0], np.float64) @ s + np.asarray(b[0], np.float64)
  assert by_hand.error(got, np.concatenate([whole[:N // 2].real, whole[:N // 2].imag])) < 1e-5
  assert np.abs(np.linalg.eigvals(np.asarray(A[0], np.float64))).max() < 1


def test_the_start_is_hippo_or_drawn_anew_for_every_seed():
  x = np.zeros((1, 2, 5), np.float32)
  for transition in ("legs", "random"):
    layer = s4.S4(channels=2, order=N, length=L, transition=transition)
    init = jax.jit(layer.init)
    first, second = (init(jax.random.key(seed), x)["params"] for seed in (0, 1))
    assert np.array_equal(first["frequency"], second["frequency"]) == (transition == "legs")


def test_a_row_longer_than_the_filter_is_refused_and_has_a_way_out():
  x = np.zeros((1, L + 1, 5), np.float32)
  with pytest.raises(ValueError, match=rf"length={L} must cover the row of {L + 1} tokens.*form='recurrent'"):
    jax.eval_shape(_layer("conv")[0].init, jax.random.key(0), x)
  jax.eval_shape(_layer("recurrent")[0].init, jax.random.key(0), x)


@pytest.mark.parametrize("fields, match", [
    (dict(order=3), "order=3 must be even"), (dict(length=1), "length=1 must be at least 2"),
    (dict(transition="legt"), "transition='legt' must be one of legs, random"),
    (dict(form="fft"), "form='fft' must be one of conv, recurrent"),
    (dict(step_min=0.0), "step_min=0.0 must be above 0 and at most step_max=0.1")])
def test_fields_without_a_meaning_are_refused(fields, match):
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(s4.S4(**fields).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
