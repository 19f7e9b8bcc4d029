"""Product keys against a search through every slot."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.channel import product_key_memory as pkm
from tests.layers import toy

# Dims: N tokens, D model width, H heads, K half key, I half keys, R slots per head, V value width.

N, D, H, K, I, R = 6, 5, 2, 3, 7, 4


def _normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _halves(seed):
  return _normal(seed, N, H, K), _normal(seed + 1, H, I, K), _normal(seed + 2, N, H, K), _normal(seed + 3, H, I, K)


def _every_slot(q, keys, other, others):
  """Scores of all I^2 slots in float64, [N, H, I * I]."""
  half = lambda a, b: np.einsum("nhk,hik->nhi", np.asarray(a, np.float64), np.asarray(b, np.float64))
  return (half(q, keys)[..., :, None] + half(other, others)[..., None, :]).reshape(N, H, -1)


@pytest.mark.parametrize("top_k", [1, R, I])
def test_two_short_searches_find_the_best_of_all_slots(top_k):
  halves = _halves(0)
  scores, slots = jax.jit(functools.partial(pkm.best_slots, top_k=top_k))(*halves)
  every = _every_slot(*halves)
  np.testing.assert_array_equal(slots, np.argsort(-every, axis=-1)[..., :top_k])
  np.testing.assert_allclose(scores, -np.sort(-every, axis=-1)[..., :top_k], rtol=1e-5, atol=1e-6)


def _case(layer, seed):
  x = _normal(seed, 2, N // 2, D)
  params = toy.parameters(layer, seed + 1, x)
  run = jax.jit(functools.partial(layer.apply, mutable=["metrics"]))
  return x, params, run({"params": params}, x)


def _memory(p, x):
  """What the memory returns, token by token over every slot in float64."""
  q = x @ p["query"]["kernel"].reshape(D, -1) + p["query"]["bias"].reshape(-1)
  q = q.reshape(N, H, 2, K)
  every = _every_slot(q[:, :, 0], p["row_keys"], q[:, :, 1], p["column_keys"])
  m, used = np.zeros((N, p["values"].shape[1])), set()
  for n in range(N):
    for h in range(H):
      best = np.argsort(-every[n, h])[:R]
      used |= set(best.tolist())
      w = np.exp(every[n, h, best] - every[n, h, best].max())
      m[n] += (w / w.sum()) @ p["values"][best]
  return m, used


@pytest.mark.parametrize("layer", [
    pkm.ProductKeyMemory(heads=H, half_keys=I, top_k=R, key_dim=K),
    pkm.MemoryPlus(heads=H, half_keys=I, top_k=R, key_dim=K, value_dim=4)], ids=["plain", "plus"])
def test_the_layer_reads_what_a_search_through_every_slot_reads(layer):
  x, params, (y, sown) = _case(layer, 4)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  rows = np.asarray(x, np.float64).reshape(N, D)
  want, used = _memory(p["memory"], rows)
  if "gate" in p:
    gate = rows @ p["gate"]["kernel"] + p["gate"]["bias"]
    want = (want * gate / (1 + np.exp(-gate))) @ p["down"]["kernel"] + p["down"]["bias"]
  assert np.linalg.norm(y.reshape(N, D) - want) < 2e-5 * np.linalg.norm(want)
  np.testing.assert_allclose(sown["metrics"]["memory"]["used"][0], len(used) / I**2, rtol=1e-6)


def test_only_rows_that_were_read_get_a_gradient():
  layer = pkm.ProductKeyMemory(heads=H, half_keys=I, top_k=R, key_dim=K)
  x, params, _ = _case(layer, 5)
  grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(layer.apply({"params": p}, x)))))(params)
  _, used = _memory(jax.tree.map(lambda a: np.asarray(a, np.float64), params)["memory"],
                    np.asarray(x, np.float64).reshape(N, D))
  moved = np.any(np.asarray(grads["memory"]["values"]) != 0, axis=1)
  assert set(np.flatnonzero(moved)) == used and len(used) < I**2
  assert all(np.any(np.asarray(grads["memory"][name]) != 0) for name in ("row_keys", "column_keys"))


def test_usage_is_even_when_every_slot_weighs_the_same():
  weights, slots = np.full((4, 2), 0.5, np.float32), np.arange(8).reshape(4, 2)
  np.testing.assert_allclose(jax.jit(pkm.usage, static_argnums=2)(weights, slots, 8), [1.0, 0.0], atol=1e-6)
  np.testing.assert_allclose(jax.jit(pkm.usage, static_argnums=2)(weights, 0 * slots, 8), [1 / 8, np.log(8)], rtol=1e-6)


def test_more_slots_than_half_keys_are_refused():
  with pytest.raises(ValueError, match=r"top_k=8 must be from 1 to half_keys=7; take fewer slots, or add half keys"):
    jax.eval_shape(pkm.ProductKeyMemory(half_keys=7, top_k=8).init, jax.random.key(0), np.zeros((1, 2, D), np.float32))
