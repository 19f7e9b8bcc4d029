"""What each router promises, and what all of them share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import routing
from layers.moe import block_ffn, constrained, deepseek, dense_to_sparse, gshard, hash_routing, noisy_top_k
from layers.moe import expert_choice, recurrent, soft, switch
from research import find
from tests.layers import toy

# Dims: N tokens, D model width, E experts, K experts per token.

N, D, E, K = 12, 6, 8, 2
ROUTERS = find.names("router")
TOP_K = ["gshard.GShard", "deepseek.DeepSeek", "noisy_top_k.NoisyTopK", "noisy_top_k.VMoE", "recurrent.Recurrent",
         "hash_routing.HashRouting"]


def _tokens(seed):
  return np.random.default_rng(seed).standard_normal((N, D), np.float32)


def _carry(router):
  return router.init_carry(N) if getattr(router, "needs_carry", False) else None


def _variables(router, seed=0, **state):
  """Returns parameters away from their start, and the given or a fresh state."""
  carry = _carry(router)
  params = toy.parameters(_Called(router), seed, _tokens(0))
  fresh = jax.eval_shape(router.init, jax.random.key(0), _tokens(0), carry).get("moe_state")
  zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), fresh) if fresh else {}
  return {"params": params, "moe_state": {**zeros, **state}}


class _Called:
  """A module whose init calls the router with its first carry; routers without parameters have none."""

  def __init__(self, router):
    self.router = router

  def init(self, key, x):
    return {"params": {}, **self.router.init(key, x, _carry(self.router))}


@functools.partial(jax.jit, static_argnames=("router", "train"))
def _run(variables, x, key, router, train=False):
  """Returns (Routing, changed state)."""
  if train:
    return router.clone(train=True).apply(variables, x, _carry(router), rngs={"dropout": key}, mutable=["moe_state"])
  return router.apply(variables, x, _carry(router)), {}


def _routing(router, x, seed=0, train=False, **state):
  return _run(_variables(router, seed, **state), x, jax.random.key(7), router, train)


@pytest.mark.parametrize("name", ROUTERS)
def test_gates_are_float32_and_zero_exactly_where_not_chosen(name):
  router = find.find("router", name, "router")(experts=E)
  found, _ = _routing(router, _tokens(1).astype(jnp.bfloat16))
  assert found.gates_NE.shape == (N, E) and found.gates_NE.dtype == jnp.float32
  if found.indices_NK is not None:
    chosen = np.zeros((N, E), bool)
    np.put_along_axis(chosen, np.asarray(found.indices_NK), True, axis=1)
    np.testing.assert_array_equal(np.asarray(found.gates_NE) != 0, chosen)
    assert all(len(set(row)) == len(row) for row in np.asarray(found.indices_NK).tolist())
  for loss in found.losses:
    assert hasattr(router, f"{loss}_weight")
    assert found.losses[loss].shape == () and found.losses[loss].dtype == jnp.float32


@pytest.mark.parametrize("name", [name for name in ROUTERS if name != "expert_choice.ExpertChoice"])
def test_a_token_is_routed_alone(name):
  router = find.find("router", name, "router")(experts=E)
  x = _tokens(2)
  shuffle = np.random.default_rng(3).permutation(N)
  found, moved = _routing(router, x)[0], _routing(router, x[shuffle])[0]
  np.testing.assert_allclose(moved.gates_NE, np.asarray(found.gates_NE)[shuffle], rtol=2e-6, atol=1e-7)


def _told(name, train):
  """Returns a jitted (x, real) -> (losses, stats, changed state)."""
  router = find.find("router", name, "router")(experts=E)
  variables, rngs = _variables(router), {"dropout": jax.random.key(7)}
  router = router.clone(train=True) if train and hasattr(router, "train") else router
  def run(x, real):
    carry = router.init_carry(len(x)) if getattr(router, "needs_carry", False) else None
    found, changed = router.apply(variables, x, carry, real, rngs=rngs, mutable=["moe_state"])
    return found.losses, found.stats, changed
  return jax.jit(run)


REAL = np.arange(N) % 4 != 1


@pytest.mark.parametrize("name", ROUTERS)
def test_what_padding_holds_changes_nothing_that_is_told_of_a_batch(name):
  run, x = _told(name, train=True), _tokens(22)
  junk = np.where(REAL[:, None], x, 9 * _tokens(23))
  jax.tree.map(np.testing.assert_array_equal, run(junk, REAL), run(x, REAL))
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(run(x, np.zeros(N, bool))))


@pytest.mark.parametrize("name", ["deepseek.DeepSeek", "noisy_top_k.VMoE"])
def test_a_batch_with_padding_tells_what_it_would_without(name):
  run, x = _told(name, train=False), _tokens(24)
  near = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
  jax.tree.map(near, run(x, REAL), run(x[REAL], None))


@pytest.mark.parametrize("name", TOP_K)
def test_equal_logits_choose_the_first_experts(name):
  router = find.find("router", name, "router")(experts=E, top_k=K)
  found, _ = _run(jax.tree.map(np.zeros_like, _variables(router)), _tokens(21), None, router)
  start = 0
  if name == "hash_routing.HashRouting":  # has no logits: its first choice differs, the others follow it
    start = np.asarray(found.indices_NK)[:, :1]
  np.testing.assert_array_equal(found.indices_NK, (start + np.tile(np.arange(K), (N, 1))) % E)
  np.testing.assert_allclose(np.sum(found.gates_NE, axis=1), 1.0 if name != "noisy_top_k.VMoE" else K / E, rtol=1e-6)


@pytest.mark.parametrize("name", TOP_K)
def test_more_choices_than_experts_are_refused(name):
  router = find.find("router", name, "router")(experts=4, top_k=5)
  with pytest.raises(ValueError, match=r"top_k=5 must be from 1 to experts=4; choose fewer per token, or add experts"):
    jax.eval_shape(router.init, jax.random.key(0), _tokens(0), _carry(router))


@pytest.mark.parametrize("name", ROUTERS)
def test_extreme_tokens_leave_finite_gradients(name):
  router = find.find("router", name, "router")(experts=E)
  variables = _variables(router)

  def score(params, x):
    found = router.apply({**variables, "params": params}, x, _carry(router))
    return jnp.sum(jnp.sin(found.gates_NE)) + sum(found.losses.values())
  grads = jax.jit(jax.grad(score, argnums=(0, 1)))
  for scale in (0.0, 1e4):
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads(variables["params"], scale * _tokens(4))))


def test_renormalised_probabilities_are_a_softmax_over_the_chosen_logits():
  router = gshard.GShard(experts=E, top_k=3)
  variables, x = _variables(router), _tokens(5)
  found, _ = _routing(router, x)
  logits = np.asarray(x, np.float64) @ np.asarray(variables["params"]["logits"]["kernel"], np.float64)
  top = np.sort(logits, axis=1)[:, -3:]
  want = np.where(logits >= top[:, :1], np.exp(logits), 0) / np.exp(top).sum(1, keepdims=True)
  np.testing.assert_allclose(found.gates_NE, want, rtol=2e-5, atol=1e-7)


def test_a_random_second_expert_comes_as_often_as_twice_its_gate():
  router = gshard.GShard(experts=2, random_second=True)
  x = np.tile(_tokens(6)[:1], (4000, 1))
  variables = {"params": {"logits": {"kernel": np.outer(x[0] / np.sum(x[0]**2), [1.3, 0.0]).astype(np.float32)}}}
  found, _ = _run(variables, x, jax.random.key(1), router, True)
  second = 1 / (1 + np.exp(1.3))
  assert abs(np.mean(np.asarray(found.gates_NE)[:, 1] != 0) - 2 * second) < 0.03
  assert np.all(np.asarray(found.gates_NE)[:, 0] != 0)


def test_switch_keeps_the_probability_as_gate_and_jitters_only_in_training():
  router = switch.Switch(experts=E, jitter=0.1)
  x = _tokens(7)
  (found, _), (again, _), (jittered, _) = (_routing(router, x), _routing(router, x), _routing(router, x, train=True))
  np.testing.assert_array_equal(found.gates_NE, again.gates_NE)
  assert 0 < np.max(np.abs(jittered.gates_NE - found.gates_NE)) < 0.2
  soft_gates = _routing(soft.Soft(experts=E), x)[0].gates_NE
  np.testing.assert_allclose(np.max(found.gates_NE, axis=1), np.max(soft_gates, axis=1), rtol=1e-6)


def test_noisy_gates_with_all_experts_are_the_soft_mixture():
  x = _tokens(8)
  variables = _variables(noisy_top_k.NoisyTopK(experts=E, top_k=E))
  found, _ = _run(variables, x, jax.random.key(0), noisy_top_k.NoisyTopK(experts=E, top_k=E))
  only = {"params": {"logits": variables["params"]["logits"]}}
  np.testing.assert_allclose(found.gates_NE, _run(only, x, None, soft.Soft(experts=E))[0].gates_NE, rtol=2e-6)


def test_noise_is_drawn_in_training_only_and_its_scale_learns_from_the_load():
  router = noisy_top_k.NoisyTopK(experts=E, top_k=K)
  x, variables = _tokens(9), _variables(router)
  silent, noisy = _routing(router, x)[0], _routing(router, x, train=True)[0]
  assert np.any(np.asarray(silent.gates_NE != noisy.gates_NE))

  @functools.partial(jax.jit, static_argnames="k")
  def of_load(params, k):
    train = noisy_top_k.NoisyTopK(experts=E, top_k=k, train=True)
    return jax.grad(lambda p: train.apply({"params": p}, x, rngs={"dropout": jax.random.key(0)}).losses["load"])(params)
  assert np.any(np.asarray(of_load(variables["params"], K)["noise"]["kernel"]) != 0)
  assert np.all(np.asarray(of_load(variables["params"], E)["noise"]["kernel"]) == 0)


def test_every_chosen_expert_takes_the_same_number_of_tokens():
  router = expert_choice.ExpertChoice(experts=E, choices=2.0)
  found, _ = _routing(router, _tokens(10))
  np.testing.assert_array_equal(np.sum(np.asarray(found.gates_NE) != 0, axis=0), [2 * N // E] * E)


def test_expert_choice_without_a_token_per_expert_is_refused():
  with pytest.raises(ValueError, match=r"choices=0.5 lets each of 8 experts take 0 of 12 tokens"):
    jax.eval_shape(expert_choice.ExpertChoice(choices=0.5).init, jax.random.key(0), _tokens(0))


def test_the_bias_chooses_and_the_scores_weigh():
  router = deepseek.DeepSeek(experts=E, top_k=K, route_scale=2.5)
  x = _tokens(11)
  bias = np.zeros(E, np.float32)
  plain, shifted = _routing(router, x, bias_E=bias)[0], _routing(router, x, bias_E=bias - 3)[0]
  np.testing.assert_array_equal(plain.gates_NE, shifted.gates_NE)
  np.testing.assert_allclose(np.sum(plain.gates_NE, axis=1), 2.5, rtol=1e-6)
  bias[5] = 9.0
  forced = _routing(router, x, bias_E=bias)[0]
  assert np.all(np.asarray(forced.indices_NK)[:, 0] == 5)
  kernel = np.asarray(_variables(router)["params"]["logits"]["kernel"], np.float64)
  scores = 1 / (1 + np.exp(-np.asarray(x, np.float64) @ kernel))
  chosen = np.take_along_axis(scores, np.asarray(forced.indices_NK), axis=1)
  np.testing.assert_allclose(np.take_along_axis(np.asarray(forced.gates_NE), np.asarray(forced.indices_NK), axis=1),
                             2.5 * chosen / chosen.sum(1, keepdims=True), rtol=1e-5)


def test_the_bias_follows_the_sign_of_the_load_in_training_only():
  router = deepseek.DeepSeek(experts=E, top_k=K, bias_rate=0.25)
  found, changed = _routing(router, _tokens(12), train=True)
  count = np.sum(np.asarray(found.gates_NE) != 0, axis=0)
  np.testing.assert_array_equal(changed["moe_state"]["bias_E"], 0.25 * np.sign(N * K / E - count))
  assert _routing(router, _tokens(12))[1] == {}


def test_a_bias_has_no_gradient_and_even_loads_do_not_move_it():
  router = deepseek.DeepSeek(experts=E, top_k=K)
  variables, x = _variables(router), _tokens(13)
  of_bias = jax.jit(jax.grad(lambda b: jnp.sum(jnp.sin(
      router.apply({**variables, "moe_state": {"bias_E": b}}, x).gates_NE))))
  assert np.all(np.asarray(of_bias(np.zeros(E, np.float32))) == 0)
  np.testing.assert_array_equal(routing.moved(np.ones(E), np.eye(E), 0.1), np.ones(E))


def test_only_experts_of_the_kept_groups_are_chosen_whatever_the_bias():
  """By hand: groups by the sum of their two best, the rest shut even where all scores are negative."""
  scores = np.random.default_rng(14).uniform(-2, -1, (N, E))
  got = jax.jit(functools.partial(deepseek.limit_groups, groups=4, kept=2))(scores.astype(np.float32))
  for n in range(N):
    best = [scores[n, 2 * g:2 * g + 2].sum() for g in range(4)]
    kept = sorted(range(4), key=lambda g: -best[g])[:2]
    want = [scores[n, e] if e // 2 in kept else -np.inf for e in range(E)]
    np.testing.assert_allclose(got[n], want, rtol=1e-6)
  whole = deepseek.limit_groups(scores, groups=4, kept=4)
  np.testing.assert_array_equal(whole, scores)


@pytest.mark.parametrize("fields, message", [
    (dict(groups=3), r"groups=3 must divide experts=8"),
    (dict(groups=4, kept_groups=5), r"kept_groups=5 must be from 1 to groups=4"),
    (dict(groups=4, kept_groups=1, top_k=3), r"top_k=3 is more than the 2 experts of kept_groups=1"),
])
def test_groups_that_do_not_divide_or_do_not_suffice_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(deepseek.DeepSeek(experts=E, **fields).init, jax.random.key(0), _tokens(0))


def test_the_recurrence_is_a_gru_by_hand():
  P = 3
  draw = np.random.default_rng(15)
  inside, past, bias, h = draw.standard_normal((N, 9)), draw.standard_normal((N, 9)), draw.standard_normal(P), draw.standard_normal((N, P))
  sigmoid = lambda v: 1 / (1 + np.exp(-v))
  r, z = sigmoid(inside[:, :3] + past[:, :3]), sigmoid(inside[:, 3:6] + past[:, 3:6])
  want = (1 - z) * np.tanh(inside[:, 6:] + r * (past[:, 6:] + bias)) + z * h
  got = jax.jit(recurrent.gru)(*(np.asarray(a, np.float32) for a in (inside, past, bias[None], h)))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_relu_chooses_by_sign_and_all_negative_scores_choose_nothing():
  router = block_ffn.BlockFFN(experts=E)
  kernel = np.full((D, E), 1.0, np.float32)
  variables = {"params": {"logits": {"kernel": kernel}, "scale": np.arange(1.0, E + 1, dtype=np.float32)}}
  x = np.abs(_tokens(16))
  nothing, _ = _run(variables, -x, None, router)
  assert np.all(np.asarray(nothing.gates_NE) == 0) and nothing.stats["sparsity"] == 1
  every, _ = _run(variables, x, None, router)
  np.testing.assert_allclose(every.gates_NE, np.tile(np.arange(1.0, E + 1), (N, 1)), rtol=1e-5)
  assert every.stats["sparsity"] == 0


def test_a_cold_gate_is_an_argmax_and_an_identity_bends_nothing():
  x = _tokens(17)
  cold = dense_to_sparse.DenseToSparse(experts=E, tau=1e-4, last=1e-4)
  variables = _variables(cold)
  gates, _ = _run(variables, x, None, cold)
  best = np.argmax(x @ variables["params"]["logits"]["kernel"] + variables["params"]["bias"], axis=1)
  np.testing.assert_allclose(gates.gates_NE, np.eye(E)[best], atol=1e-6)
  warm = dense_to_sparse.DenseToSparse(experts=E, tau=1.0, last=1.0)
  variables["params"]["bias"] = np.zeros(E, np.float32)
  only = {"params": {"logits": variables["params"]["logits"]}}
  np.testing.assert_allclose(_run(variables, x, None, warm)[0].gates_NE, _run(only, x, None, soft.Soft(experts=E))[0].gates_NE,
                             rtol=1e-6)


def test_the_temperature_falls_from_first_to_last_by_equal_factors():
  tau = [float(dense_to_sparse.temperature(step, 2.0, 0.5, 10)) for step in (0, 5, 10, 99)]
  np.testing.assert_allclose(tau, [2.0, 1.0, 0.5, 0.5], rtol=1e-6)
  router = dense_to_sparse.DenseToSparse(experts=E)
  assert _routing(router, _tokens(18), train=True, step=np.float32(3))[1]["moe_state"]["step"] == 4


def test_an_expert_that_had_too_much_pauses_until_the_phase_ends():
  router = constrained.Constrained(experts=E, margin=0.5, steps=10)
  x = _tokens(19)
  free = _routing(router, x, excess_E=np.zeros(E, np.float32), train=True)
  excess = np.where(np.arange(E) == 2, np.float32(0.6), np.float32(0))  # a new array: jax may still read the other
  found, changed = _routing(router, x, excess_E=excess, train=True)
  want = np.delete(np.asarray(free[0].gates_NE), 2, axis=1)
  np.testing.assert_allclose(np.delete(found.gates_NE, 2, axis=1), want / want.sum(1, keepdims=True), rtol=1e-5)
  assert np.all(np.asarray(found.gates_NE)[:, 2] == 0)
  share = np.mean(found.gates_NE, axis=0)
  np.testing.assert_allclose(changed["moe_state"]["excess_E"], excess + share - 1 / E, atol=1e-6)
  for lifted in (dict(train=True, step=np.float32(10)), dict()):
    np.testing.assert_allclose(_routing(router, x, excess_E=excess, **lifted)[0].gates_NE, free[0].gates_NE, rtol=1e-6)


def test_a_hash_sends_near_tokens_alike_and_is_not_learned():
  router = hash_routing.HashRouting(experts=E, top_k=K)
  x = _tokens(20)
  found, near = _run({}, x, None, router)[0], _run({}, x * 1.5, None, router)[0]
  np.testing.assert_array_equal(found.indices_NK, near.indices_NK)
  assert len(set(np.asarray(found.indices_NK)[:, 0].tolist())) > 2
