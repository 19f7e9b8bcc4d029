"""The mixer against its equations in float64, its rates by head and depth, its limits and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import context as ctx
from layers.mixers import lightning, retention, simple_gla
from layers.placement import placement
from layers.stack import Stack
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V = 3, 4, 5


@functools.cache
def _layer(**fields):
  """Returns (layer, jitted apply)."""
  layer = lightning.LightningAttention(heads=H, key_dim=K, value_dim=V, gate_rank=2, **fields)
  return layer, jax.jit(layer.apply)


def _parts(p, x):
  return [by_hand.silu(np.einsum("btd,dhk->bthk", x, p[name]["kernel"])) for name in ("query", "key", "value")]


def _out(p, x, y):
  y = by_hand.rms(y.reshape(*x.shape[:2], -1), 1.0, 1e-6)
  return (y * by_hand.sigmoid(x @ p["gate_in"]["kernel"] @ p["gate"]["kernel"])) @ p["out"]["kernel"]


def _by_hand(params, x, state, log_g, turn):
  p, state = by_hand.wide(params["params"]), by_hand.wide(state)
  q, k, v = _parts(p, x)
  if turn:
    position = state["seen_B"][:, None] + np.arange(x.shape[1])
    angle = position[..., None, None] * p["rate"]
    q, k = (np.concatenate([a * np.cos(angle), a * np.sin(angle)], -1) for a in (q, k))
  log_g = np.broadcast_to(log_g, (*x.shape[:2], H))
  y, S = by_hand.recurrence(q, k, v, state["S_BHKV"], log_g, scale=1.0)
  return _out(p, x, y), dict(S_BHKV=S, seen_B=state["seen_B"] + x.shape[1])


@pytest.mark.parametrize("theta", [0.0, 20.0], ids=["decay", "lrpe"])
def test_the_mixer_is_the_equations_of_its_docstring(theta):
  layer, run = _layer(lrpe_theta=theta)
  x = by_hand.tokens(0)
  params = {"params": toy.parameters(layer, 1, x)}
  state = dict(S_BHKV=by_hand.state(layer, 2)["S_BHKV"], seen_B=np.array([3, 11], np.int32))
  rates = -np.array([2.0**-4, 2.0**-8, 2.0**-2]) * (1 + 1e-5)
  assert by_hand.error(run(params, x, state), _by_hand(params, x, state, rates, bool(theta))) < 1e-5


def test_in_a_stack_each_layer_has_the_rates_of_its_depth():
  layer, run = _layer(layers=3)
  x = by_hand.tokens(3)
  params = {"params": toy.parameters(layer, 4, x)}
  state = by_hand.state(layer, 5) | dict(seen_B=np.zeros(2, np.int32))
  for depth, factor in enumerate((1.0, 0.5, 0.0)):
    context = ctx.LayerContext(jnp.int32(depth), {})
    y, final, _ = run(params, x, state, None, context)
    rates = -lightning.slopes(H).astype(np.float64) * (factor + 1e-5)
    assert by_hand.error((y, final), _by_hand(params, x, state, rates, False)) < 1e-5


def test_a_scanned_stack_is_the_unrolled_one():
  # The index of a scanned layer is a number of the running program, not of the source.
  layer = functools.partial(lightning.LightningAttention, heads=1, key_dim=2, value_dim=2, layers=3)
  make = lambda scan: Stack((layer,) * 3, None, toy.Soft, placement("pre", 3), scan=scan)
  x = by_hand.tokens(6, T=5)
  params = toy.parameters(make(True), 7, x)
  apart = {f"layers_{i}_to_{i}": jax.tree.map(lambda p, i=i: p[i], params["scan_0_to_2"]) for i in range(3)}
  apart["final_norm"] = params["final_norm"]
  got = jax.jit(make(True).apply)({"params": params}, x, make(True).init_state(2))[0]
  want = jax.jit(make(False).apply)({"params": apart}, x, make(False).init_state(2))[0]
  assert by_hand.error(got, want) < 1e-5


def test_rates_are_those_of_alibi_and_the_last_layer_hardly_forgets():
  np.testing.assert_allclose(lightning.slopes(4), 2.0 ** -np.array([2, 4, 6, 8]))
  np.testing.assert_allclose(lightning.slopes(3), 2.0 ** -np.array([4.0, 8.0, 2.0]))
  np.testing.assert_allclose(lightning.log_decays(2, 5, 6), -1e-5 * 2.0 ** -np.array([4, 8]), rtol=1e-4)
  np.testing.assert_array_equal(lightning.log_decays(2, 0, 1), lightning.log_decays(2))
  assert np.all(lightning.log_decays(64, 7, 8) < 0)


def _core(monkeypatch, module):
  """Lets a mixer forget by its own rates of the first layer, whatever the paper of the module says."""
  monkeypatch.setattr(module, "log_decays", lambda heads, *depth: -lightning.slopes(heads))


def test_retention_without_rotation_and_a_constant_gate_are_the_same_memory(monkeypatch):
  _core(monkeypatch, retention)
  x = by_hand.tokens(8)
  memories = []
  gate = dict(kernel=np.zeros((5, H), np.float32), bias=np.log(1 / np.expm1(lightning.slopes(H))))
  for layer in (lightning.LightningAttention(heads=H, key_dim=K, value_dim=V),
                retention.Retention(heads=H, key_dim=K, value_dim=V, rope_theta=0.0),
                simple_gla.SimpleGatedLinearAttention(heads=H, key_dim=K, value_dim=V, conv=0, tau=1.0)):
    params = toy.parameters(layer, 9, x)
    kernels = {name: np.random.default_rng(i).standard_normal((5, H, w), np.float32)
               for i, (name, w) in enumerate((("query", K), ("key", K), ("value", V)))}
    for name, kernel in kernels.items():
      params[name] = dict(kernel=kernel.reshape(params[name]["kernel"].shape))
    if "decay" in params:
      params["decay"] = gate
    memories.append(np.asarray(jax.jit(layer.apply)({"params": params}, x)[1]["S_BHKV"]))
  lightning_S, retention_S, gated_S = memories
  np.testing.assert_allclose(gated_S, lightning_S, rtol=1e-4, atol=1e-4)
  # Retention bends nothing: its memory is that of the same products without silu.
  k, v = (np.einsum("btd,dhk->bthk", x.astype(np.float64), kernels[name]) for name in ("key", "value"))
  log_g = np.broadcast_to(-lightning.slopes(H), (*x.shape[:2], H))
  for S, (k, v) in ((retention_S, (k, v)), (lightning_S, (by_hand.silu(k), by_hand.silu(v)))):
    want = by_hand.recurrence(k, k, v, np.zeros((2, H, K, V)), log_g)[1]
    assert by_hand.error(S, want) < 1e-4


@pytest.mark.parametrize("fields, words", [
    (dict(gate_rank=0), "gate_rank=0 must be at least 1"), (dict(heads=0), "heads=0"),
    (dict(lrpe_theta=-1.0), "lrpe_theta=-1.0 must be above 0")])
def test_fields_without_meaning_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(lightning.LightningAttention(**fields).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
