"""The mixer against the equations of its docstring in float64, with and without convolutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import simple_gla as gla
from tests.layers import toy

B, T, D, H, K, V = 2, 10, 5, 2, 3, 4


@functools.cache
def _layer(conv):
  """Returns (layer, jitted apply); half_life and tau = 4 as the tests want them."""
  layer = gla.SimpleGatedLinearAttention(
      heads=H, key_dim=K, value_dim=V, conv=conv, half_life=10.0, tau=4.0)
  return layer, jax.jit(layer.apply)


def _tokens(seed):
  return np.random.default_rng(seed).standard_normal((B, T, D), np.float32)


def _state(layer, seed):
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda s: draw.standard_normal(s.shape, np.float32), layer.init_state(B))


def _silu(z):
  return z / (1 + np.exp(-z))


def _by_hand(params, x, state, conv, tau=4.0):
  """Returns (y, final state)."""
  wide = lambda tree: jax.tree.map(lambda a: np.asarray(a, np.float64), tree)
  p, state, final = wide(params["params"]), wide(state), {}

  def project(name):
    y = x @ p[name]["kernel"]
    if conv:
      line = np.concatenate([state[name[0]], y], 1)
      y = sum(c * line[:, conv - 1 - w:conv - 1 - w + T]
              for w, c in enumerate(p[f"{name}_conv"]["filter"]))
      final[name[0]] = line[:, T:]
    return _silu(y).reshape(B, T, H, -1)

  q, k, v = map(project, ("query", "key", "value"))
  a = (1 / (1 + np.exp(-(x @ p["decay"]["kernel"] + p["decay"]["bias"])))) ** (1 / tau)
  S, y = state["S_BHKV"], np.zeros((B, T, H, V))
  for t in range(T):
    S = a[:, t, :, None, None] * S + k[:, t, :, :, None] * v[:, t, :, None, :]
    y[:, t] = np.einsum("bhkv,bhk->bhv", S, q[:, t]) / np.sqrt(K)
  y = p["norm"]["scale"] * y / np.sqrt(np.mean(y * y, -1, keepdims=True) + 1e-6)
  y = y.reshape(B, T, H * V) * _silu(x @ p["gate"]["kernel"])
  return y @ p["out"]["kernel"], final | {"S_BHKV": S}


def _rel(got, want):
  return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("conv", [0, 3])
def test_the_mixer_is_the_equations_of_its_docstring(conv):
  layer, run = _layer(conv)
  x, state = _tokens(0), _state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  y, final = run(params, x, state)
  want_y, want = _by_hand(params, x, state, conv)
  assert _rel(y, want_y) < 1e-5
  assert final.keys() == want.keys()
  for name in want:
    assert _rel(final[name], want[name]) < 3e-6, name


def test_without_convolutions_there_is_nothing_of_them():
  layer, _ = _layer(0)
  params = jax.eval_shape(layer.init, jax.random.key(0), _tokens(0))["params"]
  assert set(layer.init_state(B)) == {"S_BHKV"}
  assert set(params) == {"query", "key", "value", "decay", "norm", "gate", "out"}


def test_an_untrained_head_has_the_half_life_it_was_given():
  layer, run = _layer(0)
  params, x = jax.jit(layer.init)(jax.random.key(0), _tokens(0)), _tokens(3)
  state = _state(layer, 4)
  empty = jax.tree.map(np.zeros_like, state)
  left = run(params, x, state)[1]["S_BHKV"] - run(params, x, empty)[1]["S_BHKV"]
  assert T == layer.half_life
  np.testing.assert_allclose(left, state["S_BHKV"] / 2, atol=1e-5)


@pytest.mark.parametrize("half_life", [1e-3, 0.5, 64.0, 1e6])
@pytest.mark.parametrize("tau", [1.0, 16.0])
def test_the_bias_of_a_half_life_gives_that_half_life(half_life, tau):
  log_a = -np.logaddexp(0, -gla.decay_bias(half_life, tau)) / tau
  np.testing.assert_allclose(half_life * log_a, -np.log(2), rtol=1e-9)


def test_a_head_that_never_forgets_is_plain_linear_attention():
  layer, run = _layer(0)
  x = _tokens(5)
  decay = dict(kernel=np.zeros((D, H), np.float32), bias=np.full(H, 40, np.float32))
  params = {"params": toy.parameters(layer, 6, x) | {"decay": decay}}
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
  q, k, v = (_silu(x @ p[n]["kernel"]).reshape(B, T, H, -1) for n in ("query", "key", "value"))
  score = np.tril(np.einsum("bthk,bshk->bhts", q, k)) / np.sqrt(K)
  y = np.einsum("bhts,bshv->bthv", score, v)
  y = p["norm"]["scale"] * y / np.sqrt(np.mean(y * y, -1, keepdims=True) + 1e-6)
  want = (y.reshape(B, T, H * V) * _silu(x @ p["gate"]["kernel"])) @ p["out"]["kernel"]
  assert _rel(run(params, x, layer.init_state(B))[0], want) < 1e-5


@pytest.mark.parametrize("fields", [dict(half_life=0.0), dict(tau=0.0), dict(half_life=-1.0)])
def test_a_decay_of_no_tokens_is_refused_with_both_numbers(fields):
  layer = gla.SimpleGatedLinearAttention(**fields)
  with pytest.raises(ValueError, match=rf"half_life={layer.half_life}.*tau={layer.tau} must be"):
    jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 2, 3)))
