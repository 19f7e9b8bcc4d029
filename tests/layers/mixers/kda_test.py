"""The mixer against its equations in float64, its scalar limit, its gates at the start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers.kda import KDA
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V = 2, 3, 4


@functools.cache
def _layer(**fields):
  """Returns (layer, jitted apply)."""
  layer = KDA(heads=H, key_dim=K, value_dim=V, **fields)
  return layer, jax.jit(layer.apply)


def _log_decay(layer, p, x):
  z = x @ p["decay_in"]["kernel"] @ p["decay_out"]["kernel"] + p["decay_out"]["bias"]
  z, A = by_hand.heads(z, H), np.exp(p["A_log"])[:, None]
  return -A * by_hand.softplus(z) if layer.decay_gate == "softplus" else -5 * by_hand.sigmoid(A * z)


def _by_hand(layer, params, x, state, scalar=False):
  p, state, past = by_hand.wide(params["params"]), by_hand.wide(state), {}
  parts = []
  for name in ("query", "key", "value"):
    part, final = by_hand.project(p, name, x, state, H)
    parts, past = parts + [part], past | final
  q, k, v = parts
  beta = by_hand.sigmoid(x @ p["beta"]["kernel"]) * (2 if layer.negative_eigenvalues else 1)
  log_a = _log_decay(layer, p, x)
  y, S = by_hand.recurrence(
      by_hand.unit(q), by_hand.unit(k), v, state["S_BHKV"], log_a[..., 0] if scalar else log_a, beta)
  y = by_hand.rms(y, p["norm"]["scale"], 1e-5).reshape(*x.shape[:2], -1)
  gate = x @ p["gate_in"]["kernel"] @ p["gate_out"]["kernel"] + p["gate_out"]["bias"]
  return (y * by_hand.sigmoid(gate)) @ p["out"]["kernel"], past | {"S_BHKV": S}


@pytest.mark.parametrize("fields", [
    dict(conv=3), dict(conv=0, decay_gate="bounded", negative_eigenvalues=True)], ids=["conv", "options"])
def test_the_mixer_is_the_equations_of_its_docstring(fields):
  layer, run = _layer(**fields)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  assert by_hand.error(run(params, x, state), _by_hand(layer, params, x, state)) < 1e-5


def test_a_gate_alike_in_all_channels_is_the_rule_of_gated_delta_net():
  layer, run = _layer(conv=3)
  x, state = by_hand.tokens(3), by_hand.state(layer, 4)
  params = toy.parameters(layer, 5, x)
  alike = lambda a: np.repeat(a[..., ::K], K, axis=-1)  # every channel takes its head's first
  params["decay_out"] = jax.tree.map(alike, params["decay_out"])
  want = _by_hand(layer, {"params": params}, x, state, scalar=True)
  assert by_hand.error(run({"params": params}, x, state), want) < 1e-5


def test_the_bounded_gate_forgets_no_faster_than_five_nats_a_token():
  layer, run = _layer(conv=0, decay_gate="bounded", negative_eigenvalues=True)
  x, state = by_hand.tokens(6)[:, :1], by_hand.state(layer, 7)
  params = toy.parameters(layer, 8, x)
  params["decay_out"]["bias"] = np.full(H * K, 1e4, np.float32)
  params["value"]["kernel"] *= 0
  params["key"]["kernel"] *= 0
  left = run({"params": params}, x, state)[1]["S_BHKV"]
  assert by_hand.error(left, np.exp(-5) * state["S_BHKV"]) < 1e-5


def test_rates_and_steps_start_in_the_ranges_of_the_paper():
  layer = KDA(heads=300, key_dim=2, value_dim=1, conv=0)
  params = jax.jit(layer.init)(jax.random.key(0), np.zeros((1, 1, 2), np.float32))["params"]
  rate, step = np.exp(params["A_log"]), np.log1p(np.exp(params["decay_out"]["bias"], dtype=np.float64))
  assert 0.999 < rate.min() < 2 and 15 < rate.max() < 16.001
  assert 0.99e-3 < step.min() < 1.2e-3 and 0.08 < step.max() < 0.101


def test_an_unknown_gate_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="decay_gate='relu' is unknown; choose from softplus, bounded"):
    jax.eval_shape(KDA(decay_gate="relu").init, jax.random.key(0), jnp.zeros((1, 2, 3)))
