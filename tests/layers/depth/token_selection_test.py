"""Layers that only some tokens see: against the same layers run by hand, and where they are the dense ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import context as ctx
from layers.depth import token_selection
from layers.depth.gamma_mod import GammaMoD, a_rank
from layers.depth.mixture_of_depths import MixtureOfDepths
from layers.depth.p_mod import PMoD
from layers.placement import placement
from layers.stack import Block, Stack
from tests.layers import toy

B, T, D, K = 2, 6, 4, 3
X = np.random.default_rng(0).standard_normal((B, T, D), np.float32)
IDS = np.zeros((B, T), np.int32)
PLAIN = functools.partial(Block, toy.Mean, toy.Tanh, toy.Soft)
ROUTED = {
    "mixture_of_depths": functools.partial(MixtureOfDepths, block=PLAIN, layer=1, depth=2, ratio=0.5),
    "p_mod": functools.partial(PMoD, block=PLAIN, layer=1, depth=3),
    "gamma_mod": functools.partial(GammaMoD, block=PLAIN, layer=0, depth=1, dense_first=0, dense_last=0),
}


@functools.cache
def _layer(name):
  """Returns (parameters, jitted run of the routed layer, jitted run of the plain one)."""
  layer, one = ROUTED[name](), np.float32(1)
  def routed(params, x, state=None, ids=IDS):
    y, _, state = layer.apply({"params": params}, x, ctx.first({}), state, one, one, ids[:, :x.shape[1]])
    return y, state
  def plain(params, x, gain):
    return PLAIN().apply({"params": params["block"]}, x, ctx.first({}), None, one, one, None, gain)[0]
  params = toy.parameters(layer, 1, X, ctx.first({}), None, one, one)
  return params, jax.jit(routed), jax.jit(plain)


def _by_hand(name, params, x):
  """Returns (scores, gain, update, skip) of every token."""
  if name == "gamma_mod":
    normed = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * params["router_norm"]["scale"]
    logits = normed @ params["router"]["kernel"]
    p = 1 / (1 + np.exp(logits[..., 0] - logits[..., 1]))
    return p, p, np.ones_like(p), np.ones_like(p)
  r = (x @ params["router"]["kernel"])[..., 0]
  one = np.ones_like(r)
  if name == "p_mod":
    w = 1 + 0.2 * np.tanh(r)
    return w, w, one, w
  return r, one, r, one


@pytest.mark.parametrize("name", ROUTED)
def test_kept_tokens_are_a_dense_layer_on_them_and_the_rest_passes(name):
  params, routed, plain = _layer(name)
  scores, gain, update, skip = _by_hand(name, params, X)
  got = np.asarray(routed(params, X)[0])
  for b in range(B):
    index = np.sort(np.argsort(-scores[b])[:K])
    want = skip[b, :, None] * X[b]
    y = np.asarray(plain(params, X[b:b + 1, index], gain[b:b + 1, index].astype(np.float32)))[0]
    want[index] = X[b, index] + update[b, index, None] * (y - X[b, index])
    np.testing.assert_allclose(got[b], want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ROUTED)
def test_in_decoding_the_predictor_chooses_and_others_leave_no_trace(name):
  params, routed, plain = _layer(name)
  # Rows of tokens that are all kept or all passed by, by the sign of their first feature.
  if name == "gamma_mod":
    params = params | {"router": {"kernel": np.zeros((D, 2), np.float32)}}
    params["router"]["kernel"][0, 1] = 5.0
  else:
    params = params | {"predictor": {"kernel": np.eye(D, 1, dtype=np.float32), "bias": np.zeros(1, np.float32)}}
  state = toy.Mean().init_state(B)
  y, after = routed(params, X, state)
  chosen = X[..., 0] > 0
  np.testing.assert_array_equal(after["count_B"], chosen.sum(1))
  _, gain, update, skip = _by_hand(name, params, X)
  for b in range(B):
    kept = X[b:b + 1, chosen[b]]
    dense = np.asarray(plain(params, kept, gain[b:b + 1, chosen[b]].astype(np.float32)))
    want = kept + update[b:b + 1, chosen[b], None] * (dense - kept)
    np.testing.assert_allclose(y[b, chosen[b]], want[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(y[b, ~chosen[b]], skip[b, ~chosen[b], None] * X[b, ~chosen[b]], rtol=1e-5)


def _stack(policy, scan=True, L=4):
  return Stack((toy.Mean,) * L, toy.Tanh, toy.Soft, placement("pre", L), scan=scan, policy=policy)


def test_with_all_tokens_kept_a_fresh_p_mod_is_the_dense_stack():
  dense, routed = _stack(None), _stack(functools.partial(PMoD, mean_ratio=1.0, decay=False))
  params = toy.parameters(dense, 2, X)
  node = {"block": params["scan_0_to_3"]["block_0"], "router": {"kernel": np.zeros((4, D, 1))},
          "predictor": {"kernel": np.zeros((4, D, 1)), "bias": np.zeros((4, 1))}}
  mine = params | {"scan_0_to_3": {"block_0": node}}
  run = lambda stack, p: jax.jit(stack.apply)({"params": p}, X)[0]
  np.testing.assert_allclose(run(routed, mine), run(dense, params), rtol=1e-5, atol=1e-6)


def test_skipped_tokens_teach_the_router_of_p_mod_too():
  params, _, _ = _layer("p_mod")
  layer = ROUTED["p_mod"]()
  def out(params):
    y_BTD = layer.apply({"params": params}, jnp.asarray(X), ctx.first({}), None, np.float32(1), np.float32(1))[0]
    return jnp.sum(y_BTD, axis=-1)
  slope = jax.jit(jax.jacobian(out))(params)["router"]["kernel"]
  assert np.all(np.any(slope != 0, axis=(2, 3)))


def test_every_second_layer_is_routed_and_the_pair_is_scanned():
  stack = _stack(functools.partial(MixtureOfDepths, ratio=0.5))
  run, = stack.runs()
  assert (run.period, run.repeats) == (2, 2)
  blocks = jax.eval_shape(stack.init, jax.random.key(0), X)["params"][run.name]
  assert "router" not in blocks["block_0"] and "router" in blocks["block_1"]


def test_p_mod_keeps_fewer_tokens_the_deeper_and_none_less_than_the_least():
  ratios = [PMoD().ratio_at(layer, 8) for layer in range(8)]
  assert ratios[:2] == [None, None] and ratios[-1] == 0.15
  assert all(a >= b for a, b in zip(ratios[2:], ratios[3:]))
  np.testing.assert_allclose(ratios[3], np.cos(np.pi * 3 / 7) / 2 + 0.5)


def test_gamma_mod_leaves_both_ends_dense():
  assert [GammaMoD().ratio_at(layer, 6) for layer in range(6)] == [None, None, None, 0.5, 0.5, None]


def test_padding_is_kept_last_whatever_its_score():
  scores = np.array([[9.0, -1, -2, -3, 8, 7]])
  index = token_selection.top(scores, 3, np.array([[0, 0, 0, 0, -1, -1]]))
  np.testing.assert_array_equal(index, [[0, 1, 2]])


def test_the_rank_of_attention_is_that_of_what_lies_below_its_diagonal():
  previous = np.eye(4, k=-1)  # every token reads the one before: rank 3
  first = np.zeros((4, 4))
  first[1:, 0] = 1.0  # every token reads the first: rank 1
  assert a_rank(np.stack([previous, first])[None]) == 2.0


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_a_ratio_outside_its_range_is_refused_with_the_number(ratio):
  with pytest.raises(ValueError, match=f"ratio={ratio} must be above 0 and at most 1"):
    token_selection.count(ratio, T)


def test_layers_that_hand_something_on_are_refused():
  stack = Stack((toy.Ones,) * 2, toy.Counter, toy.Soft, placement("none", 2), policy=MixtureOfDepths)
  with pytest.raises(ValueError, match="has no place for tokens that pass it by"):
    jax.eval_shape(stack.init, jax.random.key(0), X)
