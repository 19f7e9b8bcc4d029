"""The mixer against its equations in float64, its modes at the start, and its zero-order hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import s5
from tests.layers import toy
from tests.layers.mixers import by_hand

P = 4
LAYER = s5.S5(modes=P, blocks=2)
run = jax.jit(LAYER.apply)
discretize = jax.jit(s5.discretize)


def _by_hand(params, x, state):
  p, state = by_hand.wide(params["params"]), by_hand.wide(state)
  pair = lambda z: z[..., 0] + 1j * z[..., 1]
  L, d = -np.exp(p["log_rate"]) + 1j * p["angle"], np.exp(p["log_step"])
  write = (np.exp(L * d) - 1) / L * np.einsum("pd,btd->btp", pair(p["B"]), x)
  h, last = by_hand.scan(np.exp(L * d), write, pair(state["h_BP2"]))
  y = 2 * np.einsum("dp,btp->btd", pair(p["C"]), h).real + p["D"] * x
  g = by_hand.gelu(y)
  return g * by_hand.sigmoid(g @ p["gate"]["kernel"]), dict(h_BP2=np.stack([last.real, last.imag], -1))


def test_the_mixer_is_the_equations_of_its_docstring():
  x, state = by_hand.tokens(0), by_hand.state(LAYER, 1)
  params = {"params": toy.parameters(LAYER, 2, x)}
  assert by_hand.error(run(params, x, state), _by_hand(params, x, state)) < 1e-5


def _hippo_normal(size):
  A = np.full((size, size), -0.5)
  for n in range(size):
    for k in range(n):
      A[n, k], A[k, n] = -np.sqrt((n + 0.5) * (k + 0.5)), np.sqrt((n + 0.5) * (k + 0.5))
  return A


@pytest.mark.parametrize("size", [2, 16, 64])
def test_the_modes_are_the_eigenvalues_of_hippo_and_come_in_conjugate_pairs(size):
  values, V = s5.hippo_normal(size)
  np.testing.assert_allclose(V @ np.diag(values) @ V.conj().T, _hippo_normal(size), atol=1e-10 * size)
  np.testing.assert_allclose(values, values[::-1].conj(), atol=1e-10 * size)
  assert np.all(values.imag[size // 2:] > 0)


def test_hippo_normal_is_hippo_legs_and_a_matrix_of_rank_one():
  n = np.arange(8)
  root = np.sqrt(2 * n + 1)
  legs = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0)
  np.testing.assert_allclose(legs + np.outer(root, root) / 2, _hippo_normal(8), atol=1e-12)


def test_an_untrained_layer_answers_as_the_real_system_of_twice_the_modes():
  x = np.zeros((1, 8, 5), np.float32)
  params = jax.jit(LAYER.init)(jax.random.key(3), x)["params"]
  p = by_hand.wide(params)
  _, V = s5._modes(P, 2)
  pair = lambda z: z[..., 0] + 1j * z[..., 1]
  # The real matrices that B and C were made of, from both conjugate halves.
  B, C = 2 * (V @ pair(p["B"])).real, 2 * (pair(p["C"]) @ V.conj().T).real
  A = np.kron(np.eye(2), _hippo_normal(P))
  L = -np.exp(p["log_rate"]) + 1j * p["angle"]
  moment = lambda j: 2 * (pair(p["C"]) @ np.diag(L**j) @ pair(p["B"])).real
  for j in range(4):
    np.testing.assert_allclose(moment(j), C @ np.linalg.matrix_power(A, j) @ B, rtol=1e-4, atol=1e-4)


def test_the_hold_is_exact_for_a_constant_input_and_keeps_digits_of_slow_modes():
  L = np.array([-0.5 + 3j, -1e-6 + 1e-6j, -40 + 0j])
  d = np.array([0.1, 1e-3, 1.0])
  a, b = discretize(L.astype(np.complex64), d.astype(np.float32))
  np.testing.assert_allclose(a, np.exp(L * d), rtol=2e-6)
  np.testing.assert_allclose(b, _integral(L, d), rtol=2e-6)


def _integral(L, d):
  """Integral of exp(L s) over s from 0 to d, by a series or by its closed form."""
  z = L * d
  series = d * (1 + z / 2 + z**2 / 6)
  return np.where(np.abs(z) < 1e-4, series, (np.exp(z) - 1) / L)


@pytest.mark.parametrize("fields, words", [
    (dict(modes=4, blocks=3), "blocks=3 must .* divide modes=4"),
    (dict(modes=4, blocks=0), "blocks=0 must be at least 1"),
    (dict(step_low=0.2), "step_low=0.2 must .* step_high=0.1"),
    (dict(step_low=0.0), "step_low=0.0 must be above 0")])
def test_modes_and_steps_that_make_no_system_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(s5.S5(**fields).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
