"""The mixture as a layer: its weights, what it sows, its carry through a stack, its life in the engine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import context as ctx
from layers.channel.moe import MoE
from layers.moe.block_ffn import BlockFFN
from layers.moe.deepseek import DeepSeek
from layers.moe.gshard import GShard
from layers.moe.recurrent import Recurrent
from layers.moe.switch import Switch
from layers.placement import placement
from layers.stack import Stack
from tests.layers import toy

# Dims: B batch, T tokens, D model width, E experts, L layers.

B, T, D, E, L = 2, 6, 4, 4, 2


def _tokens(seed):
  return np.random.default_rng(seed).standard_normal((B, T, D), np.float32)


def _applied(layer, seed, **collections):
  x = _tokens(seed)
  params = toy.parameters(layer, seed + 1, x)
  run = jax.jit(functools.partial(layer.apply, mutable=["losses", "metrics", "moe_state"]))
  return x, params, run({"params": params, **collections}, x)


def _silu(v):
  return v / (1 + np.exp(-v))


def test_a_mixture_is_the_weighted_sum_of_its_units_and_the_shared_ones():
  layer = MoE(router=functools.partial(GShard, top_k=3), experts=E, hidden=5, shared_experts=2)
  x, params, (y, _) = _applied(layer, 0)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  assert p["shared"]["up"]["kernel"].shape == (D, 2 * 5)
  rows = np.asarray(x, np.float64).reshape(-1, D)
  want = np.zeros_like(rows)
  for n, row in enumerate(rows):
    logits = row @ p["router"]["logits"]["kernel"]
    top = np.argsort(-logits)[:3]
    for e, g in zip(top, np.exp(logits[top]) / np.exp(logits[top]).sum()):
      gate, up, down = (p[f"experts_{name}"]["kernel"][e] for name in ("gate", "up", "down"))
      want[n] += g * ((_silu(row @ gate) * (row @ up)) @ down)
    gate, up, down = (p["shared"][name]["kernel"] for name in ("gate", "up", "down"))
    want[n] += (_silu(row @ gate) * (row @ up)) @ down
  assert np.linalg.norm(y.reshape(-1, D) - want) < 3e-6 * np.linalg.norm(want)


def test_losses_are_sown_weighted_and_shown_unweighted():
  layer = MoE(router=functools.partial(GShard, balance_weight=0.25, z_weight=0.0), experts=E)
  _, _, (_, sown) = _applied(layer, 2)
  (loss,), (shown,) = sown["losses"]["balance"], sown["metrics"]["balance_loss"]
  np.testing.assert_allclose(loss, 0.25 * shown, rtol=1e-6)
  assert shown > 0.5 and sown["losses"]["z"][0] == 0 and sown["metrics"]["z_loss"][0] > 0
  assert all(np.shape(value) == () for (value,) in sown["metrics"].values())


def test_what_is_dropped_is_shown():
  switch = functools.partial(Switch, jitter=0.0)
  x = np.tile(_tokens(4)[:1, :1], (B, T, 1))  # twelve equal tokens choose one expert
  shares = {}
  for dispatch in ("dense", "capacity"):
    layer = MoE(router=switch, experts=E, dispatch=dispatch, capacity_factor=1.0)
    variables = {"params": toy.parameters(layer, 5, x)}
    _, sown = jax.jit(functools.partial(layer.apply, mutable=["metrics"]))(variables, x)
    shares[dispatch] = float(sown["metrics"]["dropped"][0])
    assert sown["metrics"]["max_violation"][0] == E - 1 and sown["metrics"]["load_min"][0] == 0
  assert shares == {"dense": 0, "capacity": 0.75}


def test_a_router_that_counts_rows_is_told_their_length():
  x, params, (_, sown) = _applied(MoE(router=functools.partial(BlockFFN, chunk=4), experts=E), 6)
  alone = BlockFFN(experts=E, chunk=4, tokens=T)
  want = jax.jit(alone.apply)({"params": params["router"]}, x.reshape(-1, D))
  np.testing.assert_allclose(sown["metrics"]["chunk_loss"][0], want.losses["chunk"], rtol=1e-6)


def test_the_state_moves_in_training_only():
  router = functools.partial(DeepSeek, bias_rate=0.5)
  state = {"router": {"bias_E": np.zeros(E, np.float32)}}
  _, _, (_, changed) = _applied(MoE(router=router, experts=E, train=True), 7, moe_state=state)
  assert np.any(np.asarray(changed["moe_state"]["router"]["bias_E"]) != 0)
  _, _, (_, same) = _applied(MoE(router=router, experts=E), 7, moe_state=state)
  assert np.all(np.asarray(same["moe_state"]["router"]["bias_E"]) == 0)


@pytest.mark.parametrize("dispatch", ["dense", "capacity"])
def test_padding_of_a_stack_changes_no_loss_and_no_load(dispatch):
  channel = functools.partial(MoE, router=GShard, experts=E, hidden=3, dispatch=dispatch)
  stack = Stack((toy.Ones,), channel, toy.Soft, placement("pre", 1))
  x, ids = _tokens(12), np.asarray([[0] * 4 + [-1] * 2, [-1] + [1] * 5])
  params = toy.parameters(stack, 13, x)
  run = jax.jit(lambda x: stack.apply({"params": params}, x, None, ids, mutable=["losses", "metrics"]))
  (y, _), sown = run(x)
  (other, _), sown_other = run(np.where(ids[..., None] < 0, 5 * _tokens(14), x))
  jax.tree.map(np.testing.assert_array_equal, sown_other, sown)
  np.testing.assert_array_equal(other[ids >= 0], y[ids >= 0])


def _stack(scan, router=functools.partial(Recurrent, state_dim=5)):
  return Stack((toy.Mean,) * L, functools.partial(MoE, router=router, experts=E, hidden=3), toy.Soft,
               placement("pre", L), scan=scan)


def test_the_carry_under_a_scan_is_the_carry_unrolled():
  x, scanned = _tokens(8), _stack(True)
  params = toy.parameters(scanned, 9, x)
  (name, stacked), = [(k, v) for k, v in params.items() if k.startswith("scan")]
  assert name == "scan_0_to_1"
  layers = {f"layers_{i}_to_{i}": jax.tree.map(lambda p, i=i: p[i], stacked) for i in range(L)}
  unrolled = {k: v for k, v in params.items() if k != name} | layers
  def out(stack, params):
    loss = lambda p: jnp.sum(jnp.sin(stack.apply({"params": p}, x)[0]))
    return jax.jit(jax.value_and_grad(loss))(params)
  (y, grads), (want, want_grads) = out(scanned, params), out(_stack(False), unrolled)
  np.testing.assert_allclose(y, want, rtol=1e-5)
  for i in range(L):
    for got, g in zip(jax.tree.leaves(grads[name]), jax.tree.leaves(want_grads[f"layers_{i}_to_{i}"]), strict=True):
      np.testing.assert_allclose(got[i], g, rtol=1e-4, atol=1e-5)


def test_later_layers_route_by_what_earlier_ones_carried():
  layer = MoE(router=functools.partial(Recurrent, state_dim=5), experts=E)
  x = _tokens(10)
  start = ctx.first(layer.init_carry(B, T))
  params = toy.parameters(layer, 11, x, start)
  run = jax.jit(layer.apply)
  y, after = run({"params": params}, x, start)
  again, _ = run({"params": params}, x, after)
  assert after.carry["router"].shape == (B * T, 5) and np.any(np.asarray(after.carry["router"]) != 0)
  assert np.max(np.abs(again - y)) > 1e-3


def test_a_router_with_a_carry_outside_of_a_stack_is_refused():
  layer = MoE(router=Recurrent, experts=E)
  with pytest.raises(ValueError, match=r"router=Recurrent needs a carry from layer to layer.*layers/stack.py"):
    jax.eval_shape(layer.init, jax.random.key(0), _tokens(0))


@pytest.mark.parametrize("fields, message", [
    (dict(dispatch="sparse"), r"dispatch='sparse' is unknown; choose from dense, capacity, dropless, expert_parallel"),
    (dict(experts=0), r"experts=0 must be at least 1"),
    (dict(experts=6, router=functools.partial(GShard, experts=4)), r"experts=6 has a router for experts=4; set the number beside"),
    (dict(dispatch="capacity", capacity_factor=0.0), r"capacity_factor=0.0 leaves 12 tokens x 2 choices.*capacity of 0"),
])
def test_what_cannot_run_is_refused_before_compilation(fields, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(MoE(**fields).init, jax.random.key(0), _tokens(0))


def test_experts_over_a_mesh_are_those_of_one_device():
  mesh = jax.make_mesh((2, 1), ("expert", "tensor"), devices=jax.devices()[:2],
                       axis_types=(jax.sharding.AxisType.Auto,) * 2)
  dense, split = (MoE(experts=E, dispatch=name, capacity_factor=float(E)) for name in ("dense", "expert_parallel"))
  x = _tokens(12)
  params = {"params": toy.parameters(dense, 13, x)}
  want = jax.jit(dense.apply)(params, x)
  alone = jax.jit(split.apply)(params, x)
  with jax.set_mesh(mesh):
    got = jax.jit(split.apply)(params, x)
  for y in (got, alone):  # without a mesh the buffers are those of "capacity"
    np.testing.assert_allclose(y, want, atol=2e-6)


def test_a_stack_of_mixtures_computes_the_same_from_all_padding():
  """Rows of nothing but padding go through routers too: finite, and twice the same."""
  stack = _stack(True, functools.partial(DeepSeek, experts=E))
  x = np.zeros((B, T, D), np.float32)
  variables = {"params": toy.parameters(stack, 14, x),
               "moe_state": jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(
                   stack.init, jax.random.key(0), x)["moe_state"])}
  @jax.jit
  def both(variables):
    loss = lambda v: jnp.sum(jnp.sin(stack.apply(v, x, None, np.full((B, T), -1, np.int32))[0]))
    return jax.value_and_grad(loss)(variables)
  first, second = both(variables), both(variables)
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    assert np.all(np.isfinite(a))
    np.testing.assert_array_equal(a, b)
