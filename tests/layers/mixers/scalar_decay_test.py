"""The mixer against the recurrence of its docstring in float64, and its decay at the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import scalar_decay as sd
from tests.layers import toy

B, T, D, H, K, V = 2, 10, 5, 2, 3, 4
LAYER = sd.ScalarDecayAttention(heads=H, key_dim=K, value_dim=V, half_life=10.0)

# half_life only sets a parameter, so one compiled function serves every test.
run = jax.jit(LAYER.apply)


def _tokens(seed):
  return np.random.default_rng(seed).standard_normal((B, T, D), np.float32)


def _state(seed):
  return np.random.default_rng(seed).standard_normal((B, H, K, V), np.float32)


def _parameters(decay=None):
  params = toy.parameters(LAYER, 0, _tokens(0))
  return {"params": params | ({} if decay is None else {"decay": decay})}


def _projections(params, x):
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
  silu = lambda z: z / (1 + np.exp(-z))
  q, k, v = (np.einsum("btd,dhk->bthk", x, p[n]["kernel"]) for n in ("query", "key", "value"))
  return p, silu(q), silu(k), v


def _by_hand(params, x, S):
  p, q, k, v = _projections(params, x)
  a = np.exp(-np.log1p(np.exp(x @ p["decay"]["kernel"] + p["decay"]["bias"])))
  S, y = S.astype(np.float64), np.zeros((B, T, H, V))
  for t in range(T):
    S = a[:, t, :, None, None] * S + k[:, t, :, :, None] * v[:, t, :, None, :]
    y[:, t] = np.einsum("bhkv,bhk->bhv", S, q[:, t]) / np.sqrt(K)
  return np.einsum("bthv,hvd->btd", y, p["out"]["kernel"]), S


def _rel(got, want):
  return np.linalg.norm(got - want) / np.linalg.norm(want)


def test_the_mixer_is_the_recurrence_of_its_docstring():
  params, x, S = _parameters(), _tokens(1), _state(2)
  for got, want in zip(run(params, x, S), _by_hand(params, x, S), strict=True):
    assert _rel(got, want) < 3e-6


def test_an_untrained_head_has_the_half_life_it_was_given():
  params, x, S = jax.jit(LAYER.init)(jax.random.key(0), _tokens(0)), _tokens(3), _state(4)
  with_state, without = run(params, x, S)[1], run(params, x, 0 * S)[1]
  assert T == LAYER.half_life
  np.testing.assert_allclose(with_state - without, S / 2, atol=1e-5)


@pytest.mark.parametrize("half_life", [1e-4, 0.5, 10.0, 1e6])
def test_the_bias_of_a_half_life_gives_that_half_life(half_life):
  log_a = -np.logaddexp(0, sd.half_life_bias(half_life))
  np.testing.assert_allclose(half_life * log_a, -np.log(2), rtol=1e-9)


def test_a_head_that_never_forgets_is_plain_linear_attention():
  decay = dict(kernel=np.zeros((D, H), np.float32),
               bias=np.full(H, sd.half_life_bias(1e12), np.float32))
  params, x = _parameters(decay), _tokens(5)
  p, q, k, v = _projections(params, x)
  score = np.tril(np.einsum("bthk,bshk->bhts", q, k)) / np.sqrt(K)
  want = np.einsum("bhts,bshv,hvd->btd", score, v, p["out"]["kernel"])
  assert _rel(run(params, x, 0 * _state(6))[0], want) < 3e-6


def test_a_head_that_forgets_at_once_reads_its_own_token_only():
  decay = dict(kernel=np.zeros((D, H), np.float32), bias=np.full(H, 200, np.float32))
  params, x = _parameters(decay), _tokens(7)
  p, q, k, v = _projections(params, x)
  want = np.einsum("bthk,bthk,bthv,hvd->btd", q, k, v, p["out"]["kernel"]) / np.sqrt(K)
  assert _rel(run(params, x, _state(8))[0], want) < 3e-6


@pytest.mark.parametrize("half_life", [0.0, -3.0])
def test_a_half_life_of_no_tokens_is_refused(half_life):
  layer = sd.ScalarDecayAttention(half_life=half_life)
  with pytest.raises(ValueError, match=rf"half_life={half_life} must be above 0 tokens"):
    jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 2, 3)))
