"""Recursions that read the keys and values of the first: token by token in float64, and what they cannot see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import context as ctx
from layers.depth.mixture_of_recursions import MixtureOfRecursions
from layers.depth.token_choice_recursion import TokenChoiceRecursion
from layers.mixers.attention import Attention
from layers.stack import Block
from tests.layers import toy

T, D, R, H, K = 6, 4, 3, 2, 4
X = np.random.default_rng(1).standard_normal((2, T, D), np.float32)
IDS = np.asarray([[3, 3, 3, 1, 1, -1], [0, 0, 0, 0, 0, 0]], np.int32)
BLOCK = functools.partial(Block, functools.partial(Attention, heads=H, head_dim=K, groups=1, max_tokens=T), toy.Tanh, toy.Soft)
POLICY = {"expert": MixtureOfRecursions, "token": TokenChoiceRecursion}
ONE = np.float32(1)


@functools.cache
def _layer(policy, **fields):
  """Returns (parameters, jitted (parameters, x, ids) -> y)."""
  layer = POLICY[policy](BLOCK, **{"recursions": R, "keys": "shared", "combine": "residual", **fields})
  params = toy.parameters(layer, 1, X, ctx.first({}), None, ONE, ONE)
  run = lambda params, x, ids: layer.apply({"params": params}, x, ctx.first({}), None, ONE, ONE, ids)[0]
  return params, jax.jit(run)


def _soft(params, x):
  return params["scale"] * x / (1 + np.mean(np.abs(x), axis=-1, keepdims=True))


def _turn(x_THK, place_T):
  half = K // 2
  z = (x_THK[..., :half] + 1j * x_THK[..., half:]) * np.exp(1j * place_T[:, None, None] * 1e4 ** (-np.arange(half) / half))
  return np.concatenate([z.real, z.imag], -1)


class _ByHand:
  """One row and its first recursion's keys and values, in float64."""

  def __init__(self, params, x_TD, ids_T):
    self.params, self.ids_T = params, ids_T
    self.place_T = np.asarray([np.sum(ids_T[:t] == ids_T[t]) for t in range(T)])
    h_TD, mixer = _soft(params["mixer_pre_norm"], x_TD), params["mixer"]
    self.k_TK = _turn(np.einsum("td,dgk->tgk", h_TD, mixer["key"]["kernel"]), self.place_T)[:, 0]
    self.v_TK = np.einsum("td,dk->tk", h_TD, mixer["value"]["kernel"][:, 0])

  def layer(self, x_TD):
    """Returns the layer of every token; it reads what was there at first."""
    mixer, y_TD = self.params["mixer"], x_TD.copy()
    q_THK = np.einsum("td,dhk->thk", _soft(self.params["mixer_pre_norm"], x_TD), mixer["query"]["kernel"])
    q_THK = _turn(q_THK, self.place_T)
    for t, h in np.ndindex(T, H):
      seen = (self.ids_T == self.ids_T[t]) & (np.arange(T) <= t)
      weight = np.exp(self.k_TK[seen] @ q_THK[t, h] / np.sqrt(K))
      y_TD[t] += weight / weight.sum() @ self.v_TK[seen] @ mixer["out"]["kernel"][h]
    return y_TD + np.tanh(_soft(self.params["channel_pre_norm"], y_TD)) @ self.params["channel"]["kernel"]


def _by_hand(policy, params, x_TD, ids_T):
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  x, active = x_TD.astype(np.float64), ids_T >= 0
  row = _ByHand(params["block"], x, ids_T)
  if policy == "expert":
    for r, count in enumerate((6, 4, 2)):
      logits = (x @ params[f"router_{r}"]["kernel"])[:, 0]
      active &= np.isin(np.arange(T), np.argsort(np.where(active, -logits, np.inf))[:count])
      p = 0.1 / (1 + np.exp(-logits))[:, None]
      x = np.where(active[:, None], x + p * (row.layer(x) - x), x)
    return x
  logits = x @ params["router"]["kernel"]
  depth, h = logits.argmax(-1), x
  assert len({*depth}) > 1
  for i in range(R):
    h = np.where((active & (depth >= i))[:, None], row.layer(h), h)
  p = np.exp(logits).max(-1) / np.exp(logits).sum(-1)
  return x + p[:, None] * (h - x)


@pytest.mark.parametrize("policy", POLICY)
def test_later_recursions_read_what_the_first_made_of_all_tokens(policy):
  params, run = _layer(policy)
  got = np.asarray(run(params, X, IDS))
  for b in range(2):
    want = _by_hand(policy, params, X[b], IDS[b])
    np.testing.assert_allclose(got[b], want, rtol=2e-5, atol=2e-5)
  assert np.max(np.abs(got - _layer(policy, keys="own")[1](params, X, IDS))) > 1e-3


@pytest.mark.parametrize("policy", POLICY)
def test_one_recursion_has_nothing_to_share(policy):
  params, run = _layer(policy, recursions=1)
  np.testing.assert_allclose(run(params, X, IDS), _layer(policy, recursions=1, keys="own")[1](params, X, IDS), rtol=1e-6,
                             atol=1e-6)


def test_how_often_a_neighbour_is_applied_is_not_seen():
  """The last feature chooses the depth; its sign is in no key, no value and no norm."""
  params, run = _layer("token")
  router, block = np.zeros((D, R), np.float32), jax.tree.map(np.array, params["block"])
  router[3] = 3.0, 0.0, -3.0
  for name in ("key", "value"):
    block["mixer"][name]["kernel"][3] = 0.0
  params, other = dict(block=block, router=dict(kernel=router)), X.copy()
  other[:, 2, 3] *= -1
  ids, rest = np.zeros_like(IDS), np.arange(T) != 2
  want, got = run(params, X, ids), run(params, other, ids)
  np.testing.assert_array_equal(got[:, rest], want[:, rest])
  assert np.all(np.abs(got - want)[:, 2].max(-1) > 1e-3)
  own = _layer("token", keys="own")[1]
  assert np.any(np.abs(own(params, X, ids) - own(params, other, ids))[:, rest] > 1e-3)


@pytest.mark.parametrize("policy", POLICY)
def test_a_row_of_padding_passes_and_has_finite_gradients(policy):
  params, run = _layer(policy)
  ids = np.stack([np.full(T, -1, np.int32), IDS[0]])
  loss = lambda params, x: (jnp.sum(jnp.sin(y := run(params, x, ids))), y)
  slope, y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, X)
  np.testing.assert_array_equal(y[0], X[0])
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))
  assert all(np.any(slope[0]["block"]["mixer"][name]["kernel"] != 0) for name in ("query", "key", "value", "out"))


@pytest.mark.parametrize("policy", POLICY)
def test_a_mixer_without_keys_is_refused_with_the_way_out(policy):
  layer = POLICY[policy](functools.partial(Block, toy.Mean, toy.Tanh, toy.Soft), keys="shared")
  with pytest.raises(ValueError, match="keys='shared': Mean hands out no keys.*attention.Attention, or keys='own'"):
    layer.apply({}, X, ctx.first({}), None, ONE, ONE)
  with pytest.raises(ValueError, match="keys='lent' is unknown; choose from own, shared"):
    POLICY[policy](keys="lent").ratio_at(0, 1)
