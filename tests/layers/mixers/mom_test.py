"""The mixer against memories that are written one token at a time in float64, its limits, its loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import mom
from layers.mixers.gated_delta_net import GatedDeltaNet
from layers.mixers.gla import GLA
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V = 2, 3, 4

loss = jax.jit(lambda logits, real, top_k: mom.balance(*mom.route(logits, top_k), real), static_argnums=2)


@functools.cache
def _layer(**fields):
  """Returns (layer, jitted apply that also returns what was sown)."""
  layer = mom.MoM(**dict(heads=H, key_dim=K, value_dim=V, memories=3, gate_rank=2, conv=0) | fields)
  return layer, jax.jit(functools.partial(layer.apply, mutable=["losses"]))


def _case(layer, seed):
  x = by_hand.tokens(seed)
  return x, {"params": toy.parameters(layer, seed + 1, x)}, by_hand.state(layer, seed + 2)


def _decays(layer, p, x):
  """Returns log a, [B,T,P,1] or [B,T,P,K]."""
  if layer.rule == "gla":
    z = x @ p["decay_in"]["kernel"] @ p["decay_out"]["kernel"] + p["decay_out"]["bias"]
    return -by_hand.softplus(-z).reshape(*x.shape[:2], -1, K) / 16
  return (-np.exp(p["A_log"]) * by_hand.softplus(x @ p["decay"]["kernel"] + p["decay"]["bias"]))[..., None]


def _by_hand(layer, params, x, state):
  """Visits for each token only the memories it is sent to."""
  p, S = by_hand.wide(params["params"]), np.array(state["S_BPKV"], np.float64)
  f = by_hand.silu if layer.conv else lambda y: y
  N, past, parts = layer.memories + layer.shared, {}, []
  for name, count in (("query", H), ("key", N * H), ("value", N * H)):
    part, final = by_hand.project(p, name, x, by_hand.wide(state), count, f)
    parts, past = parts + [part], past | final
  q, k, v = parts
  delta = layer.rule == "gated_delta"
  if delta:
    q, k, beta = by_hand.unit(q), by_hand.unit(k), by_hand.sigmoid(x @ p["beta"]["kernel"])
  a = np.exp(_decays(layer, p, x))
  prob = np.exp(x @ p["router"]["kernel"])
  prob /= prob.sum(-1, keepdims=True)
  y = np.zeros((*x.shape[:2], H, V))
  for b, t in np.ndindex(x.shape[:2]):
    chosen = np.argsort(-prob[b, t])[:layer.top_k]
    say = {m + layer.shared: prob[b, t, m] / prob[b, t, chosen].sum() for m in chosen}
    for n, weight in (say | ({0: 1.0} if layer.shared else {})).items():
      for h in range(H):
        i = n * H + h
        S[b, i] *= a[b, t, i, :, None]
        write = v[b, t, i]
        if delta:
          write = beta[b, t, i] * (write - k[b, t, i] @ S[b, i])
        S[b, i] += np.outer(k[b, t, i], write)
        y[b, t, h] += weight * (q[b, t, h] @ S[b, i]) / np.sqrt(K)
  y = by_hand.rms(y, p["norm"]["scale"], 1e-5).reshape(*x.shape[:2], -1)
  return (y * by_hand.silu(x @ p["gate"]["kernel"])) @ p["out"]["kernel"], past | dict(S_BPKV=S)


@pytest.mark.parametrize("fields", [
    dict(rule="gated_delta", conv=3), dict(rule="gla", shared=False, top_k=1), dict(rule="simple_gla")],
    ids=lambda fields: fields["rule"])
def test_a_token_writes_to_the_memories_it_is_sent_to_and_reads_them(fields):
  layer, run = _layer(**fields)
  x, params, state = _case(layer, 0)
  got, _ = run(params, x, state)
  assert by_hand.error(got, _by_hand(layer, params, x, state)) < 2e-5


def _as_one_memory(params):
  return {name: p for name, p in params.items() if name != "router"}


@pytest.mark.parametrize("rule, base", [
    ("gated_delta", GatedDeltaNet(heads=H, key_dim=K, value_dim=V, conv=0)),
    ("gla", GLA(heads=H, key_dim=K, value_dim=V, gate_rank=2))], ids=["gated_delta", "gla"])
def test_one_memory_is_the_mixer_of_its_rule(rule, base):
  fields = dict(memories=1, top_k=1, shared=False, rule=rule)
  # GLA and MoM bend nothing without convolutions, Gated DeltaNet always does.
  layer, run = _layer(**fields, conv=3 if rule == "gated_delta" else 0)
  base = base.clone(conv=layer.conv)
  x, params, state = _case(layer, 3)
  want = jax.jit(base.apply)({"params": _as_one_memory(params["params"])}, x)
  got, _ = run(params, x)
  assert by_hand.error(got[0], np.asarray(want[0])) < 3e-6
  assert by_hand.error(got[1]["S_BPKV"], np.asarray(want[1]["S_BHKV"])) < 3e-6


def test_a_memory_that_is_not_chosen_does_not_move():
  layer, run = _layer(rule="gated_delta")
  x, params, state = _case(layer, 6)
  logits = x[:, :1] @ params["params"]["router"]["kernel"]
  rests = np.asarray(mom.route(logits, layer.top_k)[0])[:, 0] == 0
  after = np.asarray(run(params, x[:, :1], state)[0][1]["S_BPKV"]).reshape(2, 4, H, K, V)
  before = state["S_BPKV"].reshape(2, 4, H, K, V)
  assert rests.sum() == 2
  np.testing.assert_array_equal(after[:, 1:][rests], before[:, 1:][rests])
  assert np.all(np.any(after[:, 1:][~rests] != before[:, 1:][~rests], axis=(-1, -2)))


def test_memories_have_no_order():
  layer, run = _layer(rule="gated_delta")
  x, params, _ = _case(layer, 9)
  empty = layer.init_state(2)
  order = np.array([2, 0, 1])
  p = dict(params["params"])
  p["router"] = dict(kernel=p["router"]["kernel"][:, order])
  heads = (np.concatenate([[0], 1 + order])[:, None] * H + np.arange(H)).reshape(-1)
  for name in ("key", "value", "beta", "decay"):
    # The last axis of each lists the heads of all memories, the shared one first.
    turn = lambda leaf: leaf.reshape(*leaf.shape[:-1], 4 * H, -1)[..., heads, :].reshape(leaf.shape)
    p[name] = jax.tree.map(turn, p[name])
  p["A_log"] = p["A_log"][heads]
  assert by_hand.error(run({"params": p}, x, empty)[0][0], np.asarray(run(params, x, empty)[0][0])) < 3e-6


def test_weights_sum_to_one_over_the_chosen():
  weights, p = jax.jit(mom.route, static_argnums=1)(by_hand.tokens(12), 2)
  np.testing.assert_allclose(np.sum(weights, -1), 1, rtol=1e-6)
  assert np.all(np.sum(np.asarray(weights) > 0, -1) == 2)
  np.testing.assert_array_equal(np.argmax(weights, -1), np.argmax(p, -1))


def test_the_loss_is_one_where_memories_are_used_alike_and_their_number_where_one_is():
  real = np.ones((1, 4), np.float32)
  turns = 50 * np.eye(4, dtype=np.float32)[None]
  np.testing.assert_allclose(loss(turns, real, 1), 1, rtol=1e-5)
  always = np.repeat(turns[:, :1], 4, 1)
  np.testing.assert_allclose(loss(always, real, 1), 4, rtol=1e-5)
  # Padding is not counted: of the turns only the first is left.
  np.testing.assert_allclose(loss(turns, np.array([[1, 0, 0, 0]], np.float32), 1), 4, rtol=1e-5)


def test_the_loss_is_sown_with_its_factor():
  layer, run = _layer(rule="gated_delta")
  x, params, _ = _case(layer, 15)
  sown, = run(params, x, layer.init_state(2))[1]["losses"]["load_balance"]
  want = loss(x @ params["params"]["router"]["kernel"], np.ones((2, 9), np.float32), 2)
  np.testing.assert_allclose(sown, layer.load_balance * want, rtol=1e-5)


@pytest.mark.parametrize("fields, words", [
    (dict(rule="gate"), "rule='gate' is unknown; choose from simple_gla, gla, gated_delta"),
    (dict(memories=2, top_k=3), "top_k=3 must be from 1 to memories=2"), (dict(top_k=0), "top_k=0")])
def test_fields_without_meaning_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(mom.MoM(**fields).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
