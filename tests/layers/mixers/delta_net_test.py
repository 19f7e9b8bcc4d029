"""The mixer against its equations in float64, what beta does, and lengths of keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers.delta_net import DeltaNet
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V = 2, 3, 4


@functools.cache
def _layer(**fields):
  """Returns (layer, jitted apply)."""
  layer = DeltaNet(heads=H, key_dim=K, value_dim=V, **fields)
  return layer, jax.jit(layer.apply)


def _by_hand(layer, params, x, state):
  p, state, past = by_hand.wide(params["params"]), by_hand.wide(state), {}
  parts = []
  for name in ("query", "key", "value"):
    part, final = by_hand.project(p, name, x, state, H)
    parts, past = parts + [part], past | final
  q, k, v = parts
  beta = by_hand.sigmoid(x @ p["beta"]["kernel"]) * (2 if layer.negative_eigenvalues else 1)
  y, S = by_hand.recurrence(by_hand.unit(q), by_hand.unit(k), v, state["S_BHKV"], beta=beta)
  y = by_hand.rms(y, p["norm"]["scale"], 1e-5).reshape(*x.shape[:2], -1)
  if layer.output_gate:
    y = y * by_hand.silu(x @ p["gate"]["kernel"])
  return y @ p["out"]["kernel"], past | {"S_BHKV": S}


@pytest.mark.parametrize("fields", [
    dict(conv=3), dict(conv=0, negative_eigenvalues=True, output_gate=True)], ids=["conv", "options"])
def test_the_mixer_is_the_equations_of_its_docstring(fields):
  layer, run = _layer(**fields)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  assert by_hand.error(run(params, x, state), _by_hand(layer, params, x, state)) < 1e-5


def _strength(params, size):
  """Returns the parameters with beta = sigmoid(size) for tokens whose first feature is 1."""
  kernel = np.zeros_like(params["beta"]["kernel"])
  kernel[0] = size
  return {"params": params | {"beta": {"kernel": kernel}}}


def test_a_beta_of_zero_writes_nothing():
  layer, run = _layer(conv=0)
  x, state = by_hand.tokens(3), by_hand.state(layer, 4)
  x[..., 0] = 1
  params = _strength(toy.parameters(layer, 5, x), -200.0)
  np.testing.assert_array_equal(run(params, x, state)[1]["S_BHKV"], state["S_BHKV"])


def test_a_beta_of_one_makes_the_last_key_return_its_value():
  layer, run = _layer(conv=0)
  x, state = by_hand.tokens(6), by_hand.state(layer, 7)
  x[..., 0] = 1
  params = _strength(toy.parameters(layer, 8, x), 200.0)
  p = by_hand.wide(params["params"])
  k, v = (by_hand.project(p, name, x, {}, H)[0][:, -1] for name in ("key", "value"))
  held = np.einsum("bhkv,bhk->bhv", run(params, x, state)[1]["S_BHKV"], by_hand.unit(k))
  assert by_hand.error(held, v) < 1e-4  # as far as eps lets a key be one long


def test_a_beta_of_two_turns_the_state_over_and_back():
  layer, run = _layer(conv=0, negative_eigenvalues=True)
  x = np.repeat(np.abs(by_hand.tokens(9)[:, :1]), 2, axis=1)
  x[..., 0] = 1
  params = _strength(toy.parameters(layer, 10, x), 200.0)
  # Long keys, so that eps is nothing beside them; positive, so that silu lets them pass.
  params["params"]["key"]["kernel"] = 30 * np.abs(params["params"]["key"]["kernel"])
  params["params"]["value"]["kernel"] *= 0
  state = by_hand.state(layer, 11)
  p = by_hand.wide(params["params"])
  k = by_hand.unit(by_hand.project(p, "key", x, {}, H)[0][:, 0])
  along = lambda S: np.einsum("bhkv,bhk->bhv", np.asarray(S), k)
  once = run(params, x[:, :1], state)[1]["S_BHKV"]
  assert by_hand.error(along(once), -along(state["S_BHKV"])) < 1e-4
  assert by_hand.error(run(params, x, state)[1]["S_BHKV"], state["S_BHKV"]) < 1e-4


def test_the_length_of_a_key_changes_nothing_where_silu_is_linear():
  layer, run = _layer(conv=0)
  x = np.abs(by_hand.tokens(12)) + 0.5
  params = {"params": toy.parameters(layer, 13, x)}
  params["params"]["key"]["kernel"] = 40 * np.abs(params["params"]["key"]["kernel"]) + 20
  y, _ = run(params, x)
  params["params"]["key"]["kernel"] = 2 * params["params"]["key"]["kernel"]
  assert by_hand.error(run(params, x)[0], y) < 1e-5


@pytest.mark.parametrize("conv", [-1, 65])
def test_a_long_convolution_is_refused_with_its_bound(conv):
  with pytest.raises(ValueError, match=rf"conv={conv} tokens must lie between 0 .none. and 64"):
    jax.eval_shape(DeltaNet(conv=conv).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
