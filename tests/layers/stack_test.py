"""The scanned stack against the unrolled one, and what the stack threads through its layers."""

import dataclasses
import functools

import flax.linen as nn
from hypothesis import given, settings, strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.placement import Placement, placement
from layers.stack import by_depth, find_runs, Run, Stack
from tests.layers import toy

B, T, D = 2, 3, 4
A, P = toy.Mean, toy.Previous
PATTERNS = {
    "uniform": (A,) * 3,
    "period_3": (A, A, P) * 2,
    "irregular": (P, A, A),
}


def _stack(pattern, place="pre", mixers=None, **fields):
  mixers = mixers or PATTERNS[pattern]
  # One pattern with channel mixers suffices: compilation is what these tests cost.
  channel = toy.Tanh if pattern == "uniform" else None
  return Stack(mixers, channel, toy.Soft, placement(place, len(mixers)), **fields)


def _tokens(seed):
  return np.random.default_rng(seed).standard_normal((B, T, D), np.float32)


def _unrolled(tree, runs):
  """Hands the rows of scanned leaves to the layers that they belong to."""
  flat = {k: v for k, v in tree.items() if k.endswith("norm")}
  for run in runs:
    stop = run.first + run.period * run.repeats - 1
    node = tree[f"{'scan' if run.repeats > 1 else 'layers'}_{run.first}_to_{stop}"]
    for layer in range(run.first, stop + 1):
      repeat, block = divmod(layer - run.first, run.period)
      pick = (lambda leaf: leaf[repeat]) if run.repeats > 1 else (lambda leaf: leaf)
      flat[f"layers_{layer}_to_{layer}"] = {
          "block_0": jax.tree.map(pick, node[f"block_{block}"])}
  return flat


@functools.cache
def _both(pattern, scan, remat="none"):
  """Returns (stack, jitted value and gradients in parameters and tokens)."""
  stack = _stack(pattern, "layernorm_scaling", scan=scan, remat=remat)
  def bent(params, x):
    return jnp.sum(jnp.sin(stack.apply({"params": params}, x)[0]))
  return stack, jax.jit(jax.value_and_grad(bent, argnums=(0, 1)))


def _close(got, want, bound=1e-5):
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.linalg.norm(g - w) <= bound * np.linalg.norm(w) + 1e-12


@pytest.mark.parametrize("pattern", PATTERNS)
def test_scanned_is_unrolled_in_value_and_gradient(pattern):
  stack, scanned = _both(pattern, True)
  _, unrolled = _both(pattern, False)
  params = toy.parameters(stack, 0, _tokens(1))
  assert any(run.repeats > 1 for run in stack.runs())
  value, (dparams, dx) = scanned(params, _tokens(1))
  want, (dparams_want, dx_want) = unrolled(_unrolled(params, stack.runs()), _tokens(1))
  _close(value, want)
  _close(dx, dx_want)
  _close(_unrolled(dparams, stack.runs()), dparams_want)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat):
  stack, plain = _both("irregular", True)
  params = toy.parameters(stack, 2, _tokens(3))
  _close(_both("irregular", True, remat)[1](params, _tokens(3)), plain(params, _tokens(3)))


def test_remat_recomputes_as_much_as_its_name_says():
  def matmuls(remat):
    stack, both = _both("uniform", True, remat)
    traced = both.trace(toy.parameters(stack, 2, _tokens(3)), _tokens(3))
    return sum(eqn.primitive.name == "dot_general" for eqn in _equations(traced.jaxpr.jaxpr))
  none, dots, full = map(matmuls, ("none", "dots", "full"))
  assert none == dots < full


kinds = strategies.lists(strategies.sampled_from("abc"), max_size=12).map(tuple)


@given(kinds)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_runs_tile_the_layers_in_order_and_really_repeat(kinds):
  rebuilt = ()
  for run in find_runs(kinds):
    assert run.first == len(rebuilt) and run.period >= 1 and run.repeats >= 1
    assert run.repeats > 1 or run.period == 1
    rebuilt += kinds[run.first:run.first + run.period] * run.repeats
  assert rebuilt == kinds


@given(strategies.lists(strategies.sampled_from("abc"), min_size=1, max_size=4).map(tuple),
       strategies.integers(2, 5))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_a_repeated_unit_is_one_run_of_the_shortest_period(unit, repeats):
  run, = find_runs(unit * repeats)
  assert (run.first, run.period * run.repeats) == (0, len(unit) * repeats)
  assert run.period <= len(unit) and len(unit) % run.period == 0
  assert not any(unit == unit[:p] * (len(unit) // p) for p in range(1, run.period))


@pytest.mark.parametrize("kinds, runs", [
    ("", []),
    ("a", [Run(0, 1, 1)]),
    ("aaaa", [Run(0, 1, 4)]),
    ("aabaab", [Run(0, 3, 2)]),
    ("aaabbb", [Run(0, 1, 3), Run(3, 1, 3)]),
    ("ababa", [Run(0, 2, 2), Run(4, 1, 1)]),
    ("abc", [Run(0, 1, 1), Run(1, 1, 1), Run(2, 1, 1)]),
])
def test_runs_of_known_sequences(kinds, runs):
  assert find_runs(tuple(kinds)) == runs


def test_layers_of_different_placement_share_no_scan():
  assert _stack("uniform", "mix:1").runs() == [Run(0, 1, 1), Run(1, 1, 2)]


def _equations(jaxpr):
  """Yields every equation, those of inner programs too."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in jax.tree.leaves(list(eqn.params.values()),
                                 is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from _equations(inner)


@pytest.mark.parametrize("unit", [(A,), (A, P)], ids=["uniform", "period_2"])
def test_the_trace_does_not_grow_with_depth(unit):
  def size(depth, scan):
    stack = _stack(None, mixers=unit * (depth // len(unit)), scan=scan)
    params = toy.parameters(stack, 0, _tokens(0))
    loss = lambda params: jnp.sum(stack.apply({"params": params}, _tokens(0))[0])
    return sum(1 for _ in _equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
  assert size(4, True) == size(12, True)
  assert size(12, False) > 2 * size(4, False)


# Without norms and from zeros, at alpha 3, ones that survive dropout are the digits of the
# output in base 3: the mask of every layer can be read off.
DEPTH, RATE = 4, 0.25
_bare = Placement((False,) * DEPTH, (False,) * DEPTH, (False,) * DEPTH, (1.0,) * DEPTH,
                  (3.0,) * DEPTH, final_norm=False)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _dropped(scan, train, seed):
  keep = functools.partial(toy.Ones, value=1 - RATE)
  stack = Stack((keep,) * DEPTH, None, toy.Soft, _bare, dropout=RATE, scan=scan, train=train)
  return stack.apply({}, jnp.zeros((2, 64, 4)), rngs={"dropout": jax.random.key(seed)})[0]


def _masks(y):
  digits = np.rint(np.asarray(y)).astype(int)
  return np.stack([digits // 3**layer % 3 for layer in range(DEPTH)])


@pytest.mark.parametrize("scan", [True, False])
def test_dropout_draws_another_mask_for_every_layer_and_key(scan):
  masks = _masks(_dropped(scan, True, 0)).reshape(DEPTH, -1)
  assert set(np.unique(masks)) == {0, 1}
  # 512 places: 0.06 is three standard deviations of a kept share.
  np.testing.assert_allclose(masks.mean(1), 1 - RATE, atol=0.06)
  other = _masks(_dropped(scan, True, 1)).reshape(DEPTH, -1)
  for i, mask in enumerate(masks):
    assert all(np.mean(mask != later) > 0.25 for later in [*masks[i + 1:], other[i]])


@pytest.mark.parametrize("scan", [True, False])
def test_dropout_is_off_outside_training(scan):
  want = (1 - RATE) * sum(3**layer for layer in range(DEPTH))
  np.testing.assert_allclose(_dropped(scan, False, 0), want, rtol=1e-6)


@pytest.mark.parametrize("pattern, scan, remat", [
    ((0, 0, 0, 0, 0), True, "none"),
    ((0, 1, 0, 1), True, "none"),
    ((0, 1, 0, 1), True, "full"),
    ((0, 1, 0, 1), False, "none"),
    ((1, 0, 0, 0, 1), True, "none"),
])
def test_the_context_counts_layers_and_tells_each_its_index(pattern, scan, remat):
  L = len(pattern)
  nothing = [functools.partial(toy.Ones, value=0.0), functools.partial(toy.Ones, value=-0.0)]
  bare = Placement((False,) * L, (False,) * L, (False,) * L, (1.0,) * L, (1.0,) * L,
                   final_norm=False)
  stack = Stack(tuple(nothing[i] for i in pattern), toy.Counter, toy.Soft, bare, scan=scan,
                remat=remat)
  y = jax.jit(stack.apply)({}, np.zeros((2, 3, L + 1), np.float32))[0]
  # Layer l adds l + 1, the layers counted so far, to feature l: its index.
  np.testing.assert_array_equal(y, np.broadcast_to([*range(1, L + 1), 0], y.shape))


@pytest.mark.parametrize("pattern, scan", [("period_3", True), ("irregular", True), ("irregular", False)])
def test_a_skipped_layer_adds_nothing_to_the_stream_or_to_what_travels_beside_it(pattern, scan):
  nothing = {A: functools.partial(toy.Ones, 0.0), P: functools.partial(toy.Ones, 0.0)}
  mixers = tuple(nothing[i] for i in PATTERNS[pattern])
  L = len(mixers)
  bare = Placement((False,) * L, (False,) * L, (False,) * L, (1.0,) * L, (1.0,) * L, final_norm=False)
  stack = Stack(mixers, toy.Counter, toy.Soft, bare, scan=scan)
  run = jax.jit(lambda skip: stack.apply({"skip": {"layer": skip}}, np.zeros((1, 1, L), np.float32))[0][0, 0])
  for skip in range(-1, L):
    # Layer l adds to feature l how many layers have counted themselves.
    want = [0 if i == skip else i + 1 - (0 <= skip < i) for i in range(L)]
    np.testing.assert_array_equal(run(skip), want)


@pytest.mark.parametrize("pattern, scan", [*((p, True) for p in PATTERNS), ("irregular", False)])
def test_states_come_back_only_where_they_went_in_and_keep_their_form(pattern, scan):
  stack = _stack(pattern, scan=scan)
  params = {"params": toy.parameters(stack, 0, _tokens(0))}
  states = stack.init_state(B)
  form = lambda tree: jax.tree.map(lambda s: (s.shape, s.dtype), tree)
  assert jax.eval_shape(stack.apply, params, _tokens(0))[1] is None
  assert form(jax.eval_shape(stack.apply, params, _tokens(0), states)[1]) == form(states)


def test_every_layer_of_a_scan_carries_its_own_state():
  stack = _stack("irregular")
  params = {"params": toy.parameters(stack, 4, _tokens(5))}
  run = jax.jit(stack.apply)
  x, states = _tokens(5), stack.init_state(B)
  whole, final = run(params, x, states)
  ys = []
  for t in range(T):
    y, states = run(params, x[:, t:t + 1], states)
    ys.append(y)
  _close(np.concatenate(ys, 1), whole)
  _close(states, final)
  sum_RBD = np.asarray(final[1][0]["sum_BD"])
  assert sum_RBD.shape == (2, B, D) and np.abs(np.diff(sum_RBD, axis=0)).min() > 0


def test_an_unknown_remat_is_refused_before_any_layer():
  with pytest.raises(ValueError, match=r"remat='most' is unknown; choose from none, full, dots"):
    jax.eval_shape(_stack("irregular", remat="most").init, jax.random.key(0), _tokens(0))


@pytest.mark.parametrize("kinds", ["a", "aaaa", "aabaab", "abcabcdee"])
def test_what_layers_left_is_read_back_in_their_order(kinds):
  tree, runs = {}, find_runs(tuple(kinds))
  for run in runs:
    number = lambda i: np.arange(run.first + i, run.first + run.period * run.repeats, run.period)
    tree[run.name] = {f"block_{i}": {"number": number(i) if run.repeats > 1 else number(i)[0]}
                      for i in range(run.period)}
  twice = lambda layer: jnp.stack([layer["number"]] * 2)
  np.testing.assert_array_equal(by_depth(tree, runs, twice)[:, 1], np.arange(len(kinds)))
  assert by_depth({}, runs, lambda nothing: jnp.ones(())).shape == (len(kinds),)


@pytest.mark.parametrize("ids", [None, np.array([[0, 0, 1, -1, 2]])])
def test_every_norm_is_told_which_positions_are_real(ids):
  seen = []

  class Noting(nn.Module):
    def __call__(self, x, mask=None):
      seen.append(None if mask is None else mask.tolist())
      return x

  place = placement("sandwich", 2)
  stack = Stack((toy.Ones,) * 2, toy.Tanh, Noting, dataclasses.replace(place, post=(True, True), embed_norm=True),
                scan=False)
  stack.init(jax.random.key(0), np.zeros((1, 5, 4), np.float32), None, ids)
  assert seen == [ids if ids is None else [[True, True, True, False, True]]] * 14  # 2 of the model, 6 a layer
