"""The mixer against its equations in float64, its limit without decay, its gates at the start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers.delta_net import DeltaNet
from layers.mixers.gated_delta_net import GatedDeltaNet
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V = 4, 3, 4


@functools.cache
def _layer(**fields):
  """Returns (layer, jitted apply)."""
  layer = GatedDeltaNet(heads=H, key_dim=K, value_dim=V, **fields)
  return layer, jax.jit(layer.apply)


def _by_hand(layer, params, x, state):
  p, state, past = by_hand.wide(params["params"]), by_hand.wide(state), {}
  G, parts = layer.groups or H, []
  for name, heads in (("query", G), ("key", G), ("value", H)):
    part, final = by_hand.project(p, name, x, state, heads)
    parts, past = parts + [part], past | final
  q, k = (np.repeat(by_hand.unit(part), H // G, axis=2) for part in parts[:2])
  beta = by_hand.sigmoid(x @ p["beta"]["kernel"]) * (2 if layer.negative_eigenvalues else 1)
  log_a = -np.exp(p["A_log"]) * by_hand.softplus(x @ p["decay"]["kernel"] + p["decay"]["bias"])
  y, S = by_hand.recurrence(q, k, parts[2], state["S_BHKV"], log_a, beta)
  y = by_hand.rms(y, p["norm"]["scale"], 1e-5).reshape(*x.shape[:2], -1)
  return (y * by_hand.silu(x @ p["gate"]["kernel"])) @ p["out"]["kernel"], past | {"S_BHKV": S}


@pytest.mark.parametrize("fields", [
    dict(conv=3), dict(conv=0, groups=2, negative_eigenvalues=True)], ids=["conv", "options"])
def test_the_mixer_is_the_equations_of_its_docstring(fields):
  layer, run = _layer(**fields)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  assert by_hand.error(run(params, x, state), _by_hand(layer, params, x, state)) < 1e-5


def test_without_decay_it_is_a_delta_net_with_an_output_gate():
  layer, run = _layer(conv=3)
  plain = DeltaNet(heads=H, key_dim=K, value_dim=V, conv=3, output_gate=True)
  x, state = by_hand.tokens(3), by_hand.state(layer, 4)
  params = toy.parameters(layer, 5, x) | {"A_log": np.full(H, -40, np.float32)}
  shared = {name: p for name, p in params.items() if name not in ("A_log", "decay")}
  want = jax.jit(plain.apply)({"params": shared}, x, state)
  assert by_hand.error(run({"params": params}, x, state), want) < 3e-6


def test_rates_and_steps_start_in_the_ranges_of_the_paper():
  layer = GatedDeltaNet(heads=400)
  params = jax.jit(layer.init)(jax.random.key(0), np.zeros((1, 1, 2), np.float32))["params"]
  rate, step = np.exp(params["A_log"]), np.log1p(np.exp(params["decay"]["bias"], dtype=np.float64))
  assert 0 < rate.min() < 1 and 15 < rate.max() <= 16
  assert 0.99e-3 < step.min() < 1.2e-3 and 0.08 < step.max() < 0.101
  assert abs(np.median(step) - 1e-2) < 3e-3  # log-uniform, not uniform


def test_key_heads_that_do_not_divide_the_heads_are_refused():
  layer = GatedDeltaNet(heads=4, groups=3)
  with pytest.raises(ValueError, match="groups=3 must divide heads=4"):
    jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 2, 3)))
