"""The mixer against its equations in float64, its ring at the start, and its gain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import lru
from tests.layers import toy
from tests.layers.mixers import by_hand

LAYER = lru.LRU(modes=4)
run = jax.jit(LAYER.apply)


def _by_hand(params, x, state):
  p, state = by_hand.wide(params["params"]), by_hand.wide(state)
  pair = lambda z: z[..., 0] + 1j * z[..., 1]
  a = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
  write = np.exp(p["gain"]) * np.einsum("pd,btd->btp", pair(p["B"]), x)
  h, last = by_hand.scan(a, write, pair(state["h_BP2"]))
  e = by_hand.gelu(np.einsum("dp,btp->btd", pair(p["C"]), h).real + p["D"] * x)
  y = e @ p["up"]["kernel"] * by_hand.sigmoid(e @ p["gate"]["kernel"])
  return y, dict(h_BP2=np.stack([last.real, last.imag], -1))


def test_the_mixer_is_the_equations_of_its_docstring():
  x, state = by_hand.tokens(0), by_hand.state(LAYER, 1)
  params = {"params": toy.parameters(LAYER, 2, x)}
  assert by_hand.error(run(params, x, state), _by_hand(params, x, state)) < 1e-5


def test_the_ring_is_filled_evenly_and_the_phases_reach_their_bound():
  layer = lru.LRU(modes=2000, r_low=0.5, r_high=0.9, max_phase=0.3)
  p = by_hand.wide(jax.jit(layer.init)(jax.random.key(0), np.zeros((1, 1, 2), np.float32))["params"])
  square = np.exp(-2 * np.exp(p["nu"]))
  counts, _ = np.histogram(square, bins=4, range=(0.25, 0.81))
  assert counts.sum() == 2000 and np.all(np.abs(counts - 500) < 100)  # five standard deviations
  phase = np.exp(p["theta"])
  assert 0.29 < phase.max() < 0.3001 and abs(phase.mean() - 0.15) < 0.01


def test_with_the_gain_white_noise_gives_every_mode_the_same_variance():
  nu = np.log(-np.log(np.array([0.1, 0.9, 0.999, 0.99999])))
  gain = np.exp(jax.jit(lru.log_gain)(nu.astype(np.float32)), dtype=np.float64)
  # The variance of sum_s a^s g w_s is g^2 / (1 - |a|^2).
  np.testing.assert_allclose(gain**2 / -np.expm1(-2 * np.exp(nu)), 1.0, rtol=1e-5)
  layer = lru.LRU(modes=3)
  p = jax.jit(layer.init)(jax.random.key(1), np.zeros((1, 1, 2), np.float32))["params"]
  np.testing.assert_allclose(p["gain"], jax.jit(lru.log_gain)(p["nu"]), rtol=1e-6)


def test_no_parameter_makes_the_state_grow():
  x, state = by_hand.tokens(4), by_hand.state(LAYER, 5)
  params = toy.parameters(LAYER, 6, x)
  for nu in (-30.0, 0.0, 30.0):
    params["nu"] = np.full(4, nu, np.float32)
    last = run({"params": params}, 0 * x, state)[1]["h_BP2"]
    size = lambda h: np.hypot(h[..., 0], h[..., 1])
    assert np.all(size(last) <= size(state["h_BP2"]) * (1 + 1e-5))


@pytest.mark.parametrize("fields, words", [
    (dict(r_low=-0.1), "r_low=-0.1 and r_high=0.99 must"), (dict(r_high=1.0), "r_high=1.0 must"),
    (dict(r_low=0.9, r_high=0.5), "r_low=0.9 and r_high=0.5"),
    (dict(modes=0), "modes=0 must be at least 1"), (dict(max_phase=0.0), "max_phase=0.0 above 0")])
def test_rings_outside_of_the_unit_disc_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(lru.LRU(**fields).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
