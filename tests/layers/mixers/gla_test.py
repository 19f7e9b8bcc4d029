"""The mixer against its equations in float64, its limits, and its gate at the start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers.gla import GLA
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V, TAU = 2, 3, 4, 4.0


@functools.cache
def _layer(conv=0):
  """Returns (layer, jitted apply)."""
  layer = GLA(heads=H, key_dim=K, value_dim=V, gate_rank=2, tau=TAU, conv=conv)
  return layer, jax.jit(layer.apply)


def _gate(p, x):
  logit = x @ p["decay_in"]["kernel"] @ p["decay_out"]["kernel"] + p["decay_out"]["bias"]
  return by_hand.heads(-by_hand.softplus(-logit) / TAU, H)


def _by_hand(layer, params, x, state, log_a=None):
  p, state, past = by_hand.wide(params["params"]), by_hand.wide(state), {}
  parts, identity = [], lambda y: y
  for name in ("query", "key", "value"):
    part, final = by_hand.project(p, name, x, state, H, by_hand.silu if layer.conv else identity)
    parts, past = parts + [part], past | final
  y, S = by_hand.recurrence(*parts, state["S_BHKV"], _gate(p, x) if log_a is None else log_a)
  y = by_hand.rms(y, p["norm"]["scale"], 1e-5).reshape(*x.shape[:2], -1)
  return (y * by_hand.silu(x @ p["gate"]["kernel"])) @ p["out"]["kernel"], past | {"S_BHKV": S}


@pytest.mark.parametrize("conv", [0, 3])
def test_the_mixer_is_the_equations_of_its_docstring(conv):
  layer, run = _layer(conv)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  assert by_hand.error(run(params, x, state), _by_hand(layer, params, x, state)) < 1e-5


def test_a_gate_alike_in_all_channels_is_a_scalar_decay():
  layer, run = _layer()
  x, state = by_hand.tokens(3), by_hand.state(layer, 4)
  params = toy.parameters(layer, 5, x)
  alike = lambda a: np.repeat(a[..., ::K], K, axis=-1)  # every channel takes its head's first
  params["decay_out"] = jax.tree.map(alike, params["decay_out"])
  log_a = _gate(by_hand.wide(params), x)[..., 0]
  want = _by_hand(layer, {"params": params}, x, state, log_a)
  assert by_hand.error(run({"params": params}, x, state), want) < 1e-5


def test_a_gate_that_stays_open_is_plain_linear_attention():
  layer, run = _layer()
  x, state = by_hand.tokens(6), by_hand.state(layer, 7)
  params = toy.parameters(layer, 8, x)
  params["decay_out"] = dict(kernel=0 * params["decay_out"]["kernel"], bias=np.full(H * K, 60, np.float32))
  want = _by_hand(layer, {"params": params}, x, state, np.zeros((*x.shape[:2], H)))
  assert by_hand.error(run({"params": params}, x, state), want) < 1e-5


def test_an_untrained_gate_at_zero_keeps_one_half_to_the_power_of_one_over_tau():
  layer, run = _layer()
  x, state = np.zeros((2, 9, 5), np.float32), by_hand.state(layer, 9)
  params = jax.jit(layer.init)(jax.random.key(0), x)
  assert by_hand.error(run(params, x, state)[1]["S_BHKV"], state["S_BHKV"] * 0.5 ** (9 / TAU)) < 1e-5


@pytest.mark.parametrize("fields", [dict(tau=0.0), dict(gate_rank=0)])
def test_a_gate_without_a_range_is_refused_with_both_numbers(fields):
  layer = GLA(**fields)
  with pytest.raises(ValueError, match=rf"tau={layer.tau} must .*gate_rank={layer.gate_rank} at least 1"):
    jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 2, 3)))
