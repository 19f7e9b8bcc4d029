"""Tokens that choose how often a layer is applied to them: by hand, at the limits, cut, packed and padded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import context as ctx
from layers.channel.moe import MoE
from layers.depth.token_choice_recursion import TokenChoiceRecursion, moved, probabilities
from layers.mixers import gla
from layers.mixers.attention import Attention
from layers.moe.gshard import GShard
from layers.placement import placement
from layers.stack import Block, Stack, by_depth
from tests.layers import toy

T, D, R = 6, 4, 3
X = np.random.default_rng(1).standard_normal((2, T, D), np.float32)
IDS = np.zeros((2, T), np.int32)
ATTEND = functools.partial(Attention, heads=1, head_dim=4, max_tokens=T)
BLOCK = {"mean": functools.partial(Block, toy.Mean, toy.Tanh, toy.Soft),
         "attention": functools.partial(Block, ATTEND, toy.Tanh, toy.Soft),
         "shared": functools.partial(Block, ATTEND, toy.Tanh, toy.Soft),
         "gla": functools.partial(Block, functools.partial(gla.GLA, **gla.TINY), toy.Tanh, toy.Soft)}
ONE = np.float32(1)
# A token's first three features are its logits, apart enough that no rounding changes a choice.
CHOOSE = 3 * np.eye(D, R, dtype=np.float32)


def _recursion(mixer, **fields):
  """Returns the layer; with "shared" all recursions read the keys of the first."""
  return TokenChoiceRecursion(BLOCK[mixer], recursions=R, keys="shared" if mixer == "shared" else "own", **fields)


def _always(i, size=40.0):
  """Returns (router weights, x) of which every token chooses i: its last feature is 1."""
  x = X.copy()
  x[..., 3] = 1.0
  kernel = np.zeros((D, R), np.float32)
  kernel[3, i] = size
  return kernel, x


@functools.cache
def _layer(mixer="mean", **fields):
  """Returns (parameters, jitted run of the recursion, jitted run of the layer)."""
  layer = _recursion(mixer, **fields)
  params = toy.parameters(layer, 1, X, ctx.first({}), None, ONE, ONE)
  def run(params, x, ids=IDS):
    (y, _, _), sown = layer.apply({"params": params}, x, ctx.first({}), None, ONE, ONE, ids,
                                  mutable=["losses", "metrics"])
    return y, sown
  def plain(params, x):
    return BLOCK[mixer]().apply({"params": params["block"]}, x, ctx.first({}), None, ONE, ONE)[0]
  return params | {"router": {"kernel": CHOOSE}}, jax.jit(run), jax.jit(plain)


def _by_hand(params, x_TD):
  """Returns the layer of toy parts on a row, in float64."""
  soft = lambda x, name: params[name]["scale"] * x / (1 + np.mean(np.abs(x), axis=-1, keepdims=True))
  mean = np.cumsum(soft(x_TD, "mixer_pre_norm"), axis=0) / np.arange(1, len(x_TD) + 1)[:, None]
  x_TD = x_TD + mean @ params["mixer"]["kernel"]
  return x_TD + np.tanh(soft(x_TD, "channel_pre_norm")) @ params["channel"]["kernel"]


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize("combine", ["authors", "residual"])
def test_tokens_of_mixed_depths_are_the_layer_on_those_that_go_on(gate, combine):
  params, run, _ = _layer(gate=gate, combine=combine, balance_weight=0.5)
  got, sown = run(params, X)
  wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  logits = X.astype(np.float64) @ wide["router"]["kernel"]
  depth = logits.argmax(-1)
  score = np.exp(logits) if gate == "softmax" else 1 / (1 + np.exp(-logits))
  share = score / score.sum(-1, keepdims=True)
  p = share.max(-1) if gate == "softmax" else 0.1 * score.max(-1)
  for b in range(2):
    assert {*depth[b]} == {0, 1, 2}
    h = X[b].astype(np.float64)
    for i in range(R):
      active = depth[b] >= i
      h[active] = _by_hand(wide["block"], h[active])
    want = X[b] + p[b, :, None] * (h if combine == "authors" else h - X[b])
    np.testing.assert_allclose(got[b], want, rtol=2e-5, atol=2e-5)
  for i in range(R):
    np.testing.assert_allclose(sown["metrics"][f"kept_{i}"][0], np.mean(depth >= i), rtol=1e-6)
  loss = R * sum(np.mean(depth == i) * np.mean(share[..., i]) for i in range(R))
  np.testing.assert_allclose(sown["losses"]["balance"][0], 0.5 * loss, rtol=1e-5)
  np.testing.assert_allclose(sown["metrics"]["balance_loss"][0], loss, rtol=1e-5)


@pytest.mark.parametrize("last", range(R))
def test_a_sure_choice_of_all_is_plain_recursion(last):
  params, run, plain = _layer("attention", combine="residual")
  kernel, x = _always(last)
  got, sown = run(params | {"router": {"kernel": kernel}}, x)
  want = x
  for _ in range(last + 1):
    want = plain(params, want)
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
  np.testing.assert_allclose(sown["metrics"]["balance_loss"][0], R, rtol=1e-6)  # all load and all weight on one


def test_the_balance_loss_of_even_choices_is_its_weight():
  params, run, _ = _layer()
  x = np.tile(np.eye(R, D, dtype=np.float32), (2, T // R, 1))
  np.testing.assert_allclose(run(params, x)[1]["losses"]["balance"][0], 0.01, rtol=1e-6)


@pytest.mark.parametrize("mixer", ["mean", "attention", "shared"])
def test_no_token_sees_its_future(mixer):
  params, run, _ = _layer(mixer)
  want = run(params, X)[0]
  for t in range(1, T):
    other = X.copy()
    other[:, t] = np.roll(X[:, t], 1, axis=-1)  # another choice, too
    got = run(params, other)[0]
    np.testing.assert_allclose(got[:, :t], want[:, :t], rtol=1e-6, atol=1e-6)
    assert np.all(np.abs(got[:, t] - want[:, t]).max(-1) > 1e-3)


@pytest.mark.parametrize("mixer", ["attention", "shared"])
def test_documents_of_a_row_are_separate_and_padding_leaves_no_trace(mixer):
  params, run, _ = _layer(mixer)
  ids = np.asarray([[3, 3, 3, -1, 1, 1]] * 2, np.int32)
  junk = np.where(ids[..., None] < 0, 7.0, X).astype(np.float32)
  got, sown = run(params, X, ids)
  other, sown_other = run(params, junk, ids)
  np.testing.assert_array_equal(np.delete(other, 3, axis=1), np.delete(got, 3, axis=1))
  np.testing.assert_array_equal(other[:, 3], junk[:, 3])
  jax.tree.map(np.testing.assert_array_equal, sown_other, sown)
  for start, stop in ((0, 3), (4, 6)):
    alone = np.zeros_like(X)
    alone[:, :stop - start] = X[:, start:stop]
    ids = np.asarray([[0] * (stop - start) + [-1] * (T - stop + start)] * 2, np.int32)
    np.testing.assert_allclose(got[:, start:stop], run(params, alone, ids)[0][:, :stop - start], rtol=1e-5, atol=1e-5)


def test_a_recursion_that_nobody_reaches_has_finite_gradients():
  params, run, _ = _layer("attention")
  kernel, x = _always(0, size=1.0)
  slope = jax.jit(jax.grad(lambda params: jnp.sum(run(params, x)[0] ** 2)))(params | {"router": {"kernel": kernel}})
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))
  assert np.any(slope["router"]["kernel"] != 0) and np.any(slope["block"]["mixer"]["value"]["kernel"] != 0)


def test_tokens_that_have_stopped_load_no_expert():
  experts = functools.partial(MoE, router=GShard, experts=3, hidden=2)
  layer = TokenChoiceRecursion(functools.partial(Block, ATTEND, experts, toy.Soft), recursions=R, keys="shared")
  kernel, x = _always(1)
  params = toy.parameters(layer, 1, X, ctx.first({}), None, ONE, ONE) | {"router": {"kernel": kernel}}
  run = lambda x: layer.apply({"params": params}, x, ctx.first({}), None, ONE, ONE, mutable=["losses", "metrics"])[1]
  sown = jax.jit(run)(x)
  for found in (sown["losses"]["block"]["channel"]["balance"], sown["metrics"]["block"]["channel"]["load_max"]):
    first, second, third = found
    assert first > 0 and second > 0 and third == 0


@functools.cache
def _decoder(mixer):
  """Returns (states before the first token, jitted (x, states, ids) -> (y, states))."""
  layer = _recursion(mixer)
  params = toy.parameters(layer, 1, X, ctx.first({}), None, ONE, ONE) | {"router": {"kernel": CHOOSE}}
  def run(x, states, ids):
    y, _, states = layer.apply({"params": params}, x, ctx.first({}), states, ONE, ONE, ids)
    return y, states
  return (BLOCK[mixer]().mixer().init_state(2),) * layer.states, jax.jit(run)


@pytest.mark.parametrize("mixer", ["attention", "shared", "gla"])
def test_documents_cut_inside_are_the_whole_row(mixer):
  """A state belongs to the document that goes on. Parts end in padding, and some documents stop early in a part."""
  first, run = _decoder(mixer)
  ids = np.asarray([[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]], np.int32)
  want, last = run(X, first, ids)
  for cut in (0, 1, 2, 5, 6):
    states, ys = first, []
    for part in (slice(0, cut), slice(cut, T)):
      n = part.stop - part.start
      x, part_ids = np.ones_like(X), np.full_like(ids, -1)
      x[:, :n], part_ids[:, :n] = X[:, part], ids[:, part]
      y, states = run(x, states, part_ids)
      ys.append(y[:, :n])
    np.testing.assert_allclose(np.concatenate(ys, 1), want, rtol=2e-5, atol=2e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), states, last)


def test_a_token_that_stops_leaves_later_states_as_they_were():
  states, run = _decoder("gla")
  depth_BT = np.argmax(X[..., :R], axis=-1)
  want, _ = run(X, states, IDS)
  for t in range(T):
    y, new = run(X[:, t:t + 1], states, IDS[:, :1])
    np.testing.assert_allclose(y[:, 0], want[:, t], rtol=2e-5, atol=2e-5)
    for i in range(R):
      for b in range(2):
        same = [np.array_equal(n[b], o[b]) for n, o in zip(jax.tree.leaves(new[i]), jax.tree.leaves(states[i]))]
        assert all(same) == (depth_BT[b, t] < i)
    states = new


@pytest.mark.parametrize("mixer, keys, states", [(toy.Mean, "own", 2), (ATTEND, "shared", 1)])
def test_a_stack_decodes_what_it_reads_in_one_go(mixer, keys, states):
  stack = _stack(True, mixer, keys=keys)
  params = toy.parameters(stack, 2, X)
  want, _ = jax.jit(stack.apply)({"params": params}, X)
  step, now = jax.jit(stack.apply), stack.init_state(2)
  assert isinstance(now[0][0], dict) and isinstance(now[2][0], dict)  # the ends are plain layers
  assert isinstance(now[1][0], tuple) and len(now[1][0]) == states
  for t in range(T):
    y, now = step({"params": params}, X[:, t:t + 1], now)
    np.testing.assert_allclose(y[:, 0], want[:, t], rtol=2e-5, atol=2e-5)


def _stack(scan, mixer=toy.Mean, remat="none", train=False, **fields):
  policy = functools.partial(TokenChoiceRecursion, recursions=2, train=train, **fields)
  return Stack((mixer,) * 4, toy.Tanh, toy.Soft, placement("pre", 4), scan=scan, remat=remat, policy=policy)


def test_scanned_is_unrolled():
  stack = _stack(True)
  assert [(run.first, run.repeats) for run in stack.runs()] == [(0, 1), (1, 2), (3, 1)]
  params = toy.parameters(stack, 2, X)
  layers = {f"layers_{i + 1}_to_{i + 1}": jax.tree.map(lambda p, i=i: p[i], params["scan_1_to_2"]) for i in range(2)}
  unrolled = {name: node for name, node in params.items() if name != "scan_1_to_2"} | layers
  run = lambda stack, p: jax.jit(stack.apply)({"params": p}, X)[0]
  np.testing.assert_allclose(run(stack, params), run(_stack(False), unrolled), rtol=1e-5, atol=1e-6)


@functools.partial(jax.jit, static_argnames=("combine", "train"))
def _biased(params, x, bias_R, ids=IDS, combine="authors", train=False):
  """Returns (y, the bias afterwards)."""
  layer = _recursion("mean", bias_rate=0.5, combine=combine, train=train)
  variables = {"params": params, "moe_state": {"bias_R": jnp.stack(bias_R)}}
  (y, _, _), changed = layer.apply(variables, x, ctx.first({}), None, ONE, ONE, ids, mutable=["moe_state"])
  return y, changed["moe_state"]["bias_R"]


def test_the_bias_chooses_and_the_gates_know_nothing_of_it():
  params, run, plain = _layer(combine="residual")
  np.testing.assert_array_equal(_biased(params, X, [0.3] * R, combine="residual")[0], run(params, X)[0])
  p = np.exp(X @ CHOOSE) / np.exp(X @ CHOOSE).sum(-1, keepdims=True)
  got, _ = _biased(params, X, [0.0, 2.0, 0.0], combine="residual")
  np.testing.assert_allclose(got, X + p[..., 1:2] * (plain(params, plain(params, X)) - X), rtol=2e-5, atol=2e-5)


def test_the_bias_moves_by_the_choices_of_real_tokens_and_only_in_training():
  params, _, _ = _layer()
  x = np.zeros_like(X)
  x[..., 0] = 1.0  # all would choose depth 0
  x[0, 0, :2], x[1, :, :3] = (0.0, 1.0), (0.0, 0.0, 1.0)
  ids = IDS.copy()
  ids[1] = -1  # five of depth 0, one of 1, none of 2: the mean is two
  np.testing.assert_allclose(_biased(params, x, [0.0, 0.1, 0.0], ids, train=True)[1], [-0.5, 0.6, 0.5], rtol=1e-6)
  np.testing.assert_array_equal(_biased(params, x, [0.0, 0.1, 0.0], ids)[1], np.float32([0.0, 0.1, 0.0]))
  np.testing.assert_array_equal(_biased(params, x, [0.0, 0.1, 0.0], 0 * ids - 1, train=True)[1], np.float32([0.0, 0.1, 0.0]))


def test_a_skewed_router_is_balanced_by_its_bias_without_a_loss():
  """Nothing is learned here: only the bias moves, against a router that sends nearly all tokens to depth 0."""
  draw = np.random.default_rng(5)
  logits = jnp.asarray(draw.standard_normal((16, 32, R)) + [3.0, 0.0, 0.0], jnp.float32)
  p, _ = probabilities(logits, "softmax", 1.0)
  real = jnp.ones((16, 32), bool)
  choose = lambda bias: jnp.argmax(p + bias[None, None], axis=-1)
  load = lambda bias: np.bincount(np.asarray(choose(bias)).ravel(), minlength=R) / logits[..., 0].size
  step = lambda bias, _: (moved(bias, choose(bias), real, 0.01), None)
  last, _ = jax.jit(lambda bias: jax.lax.scan(step, bias, None, length=200))(jnp.zeros(R))
  assert load(jnp.zeros(R))[0] > 0.85
  assert np.all(np.abs(load(last) - 1 / R) < 0.05)


def test_every_layer_of_a_stack_has_a_bias_of_its_own():
  stack = _stack(True, remat="full", train=True, bias_rate=0.25, balance_weight=0.0)
  shapes = jax.eval_shape(stack.init, jax.random.key(0), X)["moe_state"]
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  params = toy.parameters(_stack(True), 2, X)
  def loss(params):
    (y, _), changed = stack.apply({"params": params, "moe_state": zeros}, X, mutable=["moe_state", "metrics"])
    return jnp.sum(y), changed
  _, changed = jax.jit(jax.grad(loss, has_aux=True))(params)
  bias_LR = by_depth(changed["moe_state"], stack.runs(), lambda layer: layer.get("bias_R", jnp.zeros(2)))
  more_L = by_depth(changed["metrics"], stack.runs(), lambda layer: layer.get("kept_1", (0.5,))[0]) - 0.5
  np.testing.assert_array_equal(bias_LR, 0.25 * np.sign(np.stack([more_L, -more_L], axis=1)))
  assert np.all(more_L[1:3] != 0)


def test_what_it_cannot_do_is_refused():
  layer = TokenChoiceRecursion(BLOCK["mean"], recursions=R)
  with pytest.raises(ValueError, match="recursions=3 with keys='own' needs a tuple of states, 3 of them"):
    layer.apply({}, X, ctx.first({}), toy.Mean().init_state(2), ONE, ONE)
  with pytest.raises(ValueError, match="has no place for tokens that pass a layer by"):
    layer.apply({}, X, ctx.first({"layers_BT": IDS}), None, ONE, ONE)
  for field, value in dict(gate="hard", combine="both", recursions=0, bias_rate=-0.1).items():
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
      TokenChoiceRecursion(**{field: value}).ratio_at(0, 1)
