"""The mixer against its equations in float64, its limit of one factor, and a rotation it can make."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers.delta_product import DeltaProduct
from layers.mixers.gated_delta_net import GatedDeltaNet
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V = 2, 3, 4
ACTIVATIONS = {"silu": by_hand.silu, "identity": lambda y: y}


@functools.cache
def _layer(**fields):
  """Returns (layer, jitted apply)."""
  layer = DeltaProduct(heads=H, key_dim=K, value_dim=V, **fields)
  return layer, jax.jit(layer.apply)


def _by_hand(layer, params, x, state):
  """Applies the factors of a token one after the other; no interleaved time."""
  p, state, past = by_hand.wide(params["params"]), by_hand.wide(state), {}
  N, parts = layer.householder, []
  for name, heads in (("query", H), ("key", N * H), ("value", N * H)):
    part, final = by_hand.project(p, name, x, state, heads, ACTIVATIONS[layer.activation])
    parts, past = parts + [part], past | final
  q, k, v = by_hand.unit(parts[0]), by_hand.unit(parts[1]), parts[2]
  beta = by_hand.sigmoid(x @ p["beta"]["kernel"]) * (2 if layer.negative_eigenvalues else 1)
  a = np.ones((*x.shape[:2], H))
  if layer.forget_gate:
    a = np.exp(-np.exp(p["A_log"]) * by_hand.softplus(x @ p["decay"]["kernel"] + p["decay"]["bias"]))
  S, y = state["S_BHKV"], np.zeros((*x.shape[:2], H, V))
  for t in range(x.shape[1]):
    S = a[:, t, :, None, None] * S
    for n in range(N):
      h = slice(n * H, (n + 1) * H)
      wrong = v[:, t, h] - np.einsum("bhkv,bhk->bhv", S, k[:, t, h])
      S = S + np.einsum("bh,bhk,bhv->bhkv", beta[:, t, h], k[:, t, h], wrong)
    y[:, t] = np.einsum("bhkv,bhk->bhv", S, q[:, t]) / np.sqrt(K)
  y = by_hand.rms(y, p["norm"]["scale"], 1e-5).reshape(*x.shape[:2], -1)
  return (y * by_hand.silu(x @ p["gate"]["kernel"])) @ p["out"]["kernel"], past | {"S_BHKV": S}


@pytest.mark.parametrize("fields", [
    dict(conv=3),
    dict(conv=0, householder=3, forget_gate=False, negative_eigenvalues=False, activation="identity")],
    ids=["conv", "options"])
def test_the_mixer_is_the_equations_of_its_docstring(fields):
  layer, run = _layer(**fields)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  assert by_hand.error(run(params, x, state), _by_hand(layer, params, x, state)) < 1e-5


def test_one_factor_is_gated_delta_net():
  layer, run = _layer(conv=3, householder=1)
  plain = GatedDeltaNet(heads=H, key_dim=K, value_dim=V, conv=3, negative_eigenvalues=True)
  x, state = by_hand.tokens(3), by_hand.state(layer, 4)
  params = {"params": toy.parameters(layer, 5, x)}
  want = jax.jit(plain.apply)(params, x, state)
  assert by_hand.error(run(params, x, state), want) < 1e-6


def test_two_reflections_turn_a_plane_by_twice_the_angle_between_their_keys():
  """Six tokens that turn by sixty degrees each bring the state back; one reflection never could."""
  layer = DeltaProduct(heads=1, key_dim=2, value_dim=2, conv=0, forget_gate=False)
  x = np.ones((1, 6, 1), np.float32)
  state = by_hand.state(layer, 6, B=1)
  params = toy.parameters(layer, 7, x)
  # silu of a large number is that number; of its negative, zero: keys of angle 30 and 60 degrees.
  angle = np.deg2rad([30.0, 60.0])
  params["key"]["kernel"] = 100 * np.stack([np.cos(angle), np.sin(angle)], 1).reshape(1, 4).astype(np.float32)
  params["value"]["kernel"] *= 0
  params["beta"]["kernel"] = np.full((1, 2), 200, np.float32)
  run = jax.jit(layer.apply)
  once = run({"params": params}, x[:, :1], state)[1]["S_BHKV"]
  turn = np.array([[np.cos(np.pi / 3), -np.sin(np.pi / 3)], [np.sin(np.pi / 3), np.cos(np.pi / 3)]])
  assert by_hand.error(once, turn @ state["S_BHKV"]) < 1e-5
  assert by_hand.error(run({"params": params}, x, state)[1]["S_BHKV"], state["S_BHKV"]) < 1e-5


@pytest.mark.parametrize("householder", [0, -2])
def test_less_than_one_factor_is_refused(householder):
  layer = DeltaProduct(householder=householder)
  with pytest.raises(ValueError, match=f"householder={householder} factors must be at least 1"):
    jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 2, 3)))
