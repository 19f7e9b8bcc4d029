"""HGRN and MLGRU against their equations in float64, their limits, and their lower bound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.hgru import hgru
from layers.mixers.hgrn import HGRN
from layers.mixers.mlgru import MLGRU
from pallas_kernels.chunk_recurrence import chunk_recurrence
from tests.layers import toy
from tests.layers.mixers import by_hand

F = 4

run_hgru = jax.jit(hgru, static_argnames="lower_bound")


@functools.cache
def _layer(cls, **fields):
  """Returns (layer, jitted apply)."""
  layer = cls(width=F, **fields)
  return layer, jax.jit(layer.apply)


def _map(layer, p, x):
  return by_hand.bit_linear(p, x, layer.ternary) if isinstance(layer, MLGRU) else x @ p["kernel"]


def _by_hand(layer, params, x, state):
  p, h = by_hand.wide(params["params"]), by_hand.wide(state)["h_BF"]
  bound, maps = layer.lower_bound, functools.partial(_map, layer)
  x = x.astype(np.float64)
  f = bound + (1 - bound) * by_hand.sigmoid(maps(p["forget"], x))
  h, last = by_hand.scan(f, (1 - f) * by_hand.silu(maps(p["value"], x)), h)
  y = by_hand.rms(h, p["norm"]["scale"], 1e-5) * by_hand.silu(maps(p["gate"], x))
  return maps(p["out"], y), dict(h_BF=last)


@pytest.mark.parametrize("cls, fields", [
    (HGRN, dict()), (HGRN, dict(lower_bound=0.4)), (MLGRU, dict()), (MLGRU, dict(ternary=False, lower_bound=0.4))])
def test_the_mixer_is_the_equations_of_its_docstring(cls, fields):
  layer, run = _layer(cls, **fields)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  assert by_hand.error(run(params, x, state), _by_hand(layer, params, x, state)) < 1e-5


def test_it_is_gated_linear_attention_with_one_key_per_channel():
  draw = np.random.default_rng(3)
  z, c = draw.standard_normal((2, 2, 9, F), np.float32)
  h = draw.standard_normal((2, F), np.float32)
  f = 1 / (1 + np.exp(-z))
  ones = np.ones((2, 9, F, 1), np.float32)
  want = jax.jit(functools.partial(chunk_recurrence, scale=1.0, return_final_state=True))(
      ones, (1 - f)[..., None], c[..., None], np.log(f)[..., None], initial_state=h[..., None, None])
  got, last = run_hgru(z, c, h)
  assert by_hand.error((got, last), (want[0][..., 0], want[1][..., 0, 0])) < 3e-6


def test_the_state_never_leaves_the_range_of_the_candidates():
  z, c = np.random.default_rng(4).standard_normal((2, 2, 30, F), np.float32)
  h, _ = run_hgru(5 * z, c)
  assert np.all(np.abs(h) <= np.abs(c).max((0, 1)) + 1e-6)


@pytest.mark.parametrize("bound", [0.0, 0.25, 0.999])
def test_a_closed_gate_keeps_the_lower_bound_and_an_open_one_everything(bound):
  z = np.array([[[-80.0, 0.0, 20.0, 80.0]]], np.float32)
  _, kept = run_hgru(z, 0 * z, np.ones((1, F), np.float32), lower_bound=bound)
  want = bound + (1 - bound) * by_hand.sigmoid(z[0].astype(np.float64))
  np.testing.assert_allclose(kept, want, rtol=1e-6, atol=1e-30)


def test_what_a_nearly_open_gate_writes_has_all_its_digits():
  z = np.full((1, 1, F), 20, np.float32)
  _, written = run_hgru(z, np.ones_like(z))
  np.testing.assert_allclose(written, np.full((1, F), by_hand.sigmoid(-20.0)), rtol=1e-6)


@pytest.mark.parametrize("cls", [HGRN, MLGRU])
@pytest.mark.parametrize("bound", [-0.1, 1.0])
def test_a_lower_bound_outside_of_0_to_1_is_refused(cls, bound):
  with pytest.raises(ValueError, match=rf"lower_bound={bound} must lie in \[0, 1\)"):
    jax.eval_shape(cls(lower_bound=bound).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
