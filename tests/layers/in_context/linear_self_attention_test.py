"""Layers with written-down weights against the algorithms they are, and the symmetries of one layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.in_context import constructions, filters, oracles
from layers.in_context import linear_self_attention as lsa
from layers.in_context.linear_self_attention import LinearSelfAttention
from pallas_kernels.chunk_recurrence import chunk_recurrence
from tests.layers import toy

B, N, d = 4, 8, 5


def _prompts(seed, n=N):
  """Returns (x, y, query) with x uniform on (-1/2, 1/2), noise-free."""
  draw = np.random.default_rng(seed)
  x, q = draw.uniform(-0.5, 0.5, (B, n, d)), draw.uniform(-0.5, 0.5, (B, d))
  return x, np.einsum("pnd,pd->pn", x, draw.standard_normal((B, d))), q


def _tokens(x, y, q):
  pairs = np.concatenate([x, y[..., None]], 2)
  return np.concatenate([pairs, np.pad(q, ((0, 0), (0, 1)))[:, None]], 1).astype(np.float32)


@functools.cache
def _layer(**fields):
  layer = LinearSelfAttention(**fields)
  return layer, jax.jit(layer.apply)


def _run(params, tokens, **fields):
  return np.asarray(_layer(**fields)[1]({"params": params}, tokens)[0])


def _answers(params, prompts, **fields):
  return -_run(params, _tokens(*prompts), **fields)[:, -1, -1]


def _oracle(prompts, left):
  x, y, q = prompts
  found = oracles.decompose(x, y)
  return np.sum(oracles.weights(found, left(found.l_PD)) * q, 1)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_constructed_layers_are_gradient_descent(steps):
  prompts = _prompts(0)
  params = constructions.kernels(constructions.gradient_step(d, N, 5.0))
  want = _oracle(prompts, lambda l: filters.gradient_descent(l, N, [5.0] * steps))
  assert np.abs(_answers(params, prompts, steps=steps) - want).max() < 1e-6
  scalar = dict(eta=np.float32(5.0))
  assert np.abs(_answers(scalar, prompts, steps=steps, form="gd") - want).max() < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_constructed_layers_with_gamma_are_gd_plus_plus(steps):
  prompts = _prompts(1)
  params = constructions.kernels(constructions.gd_plus_plus(d, N, 7.0, 1.5))
  want = _oracle(prompts, lambda l: filters.gd_plus_plus(l, N, [7.0] * steps, [1.5] * steps))
  assert np.abs(_answers(params, prompts, steps=steps) - want).max() < 1e-6
  scalars = dict(eta=np.float32(7.0), gamma=np.float32(1.5))
  assert np.abs(_answers(scalars, prompts, steps=steps, form="gd++") - want).max() < 1e-6


def test_a_step_may_start_anywhere():
  x, y, q = prompts = _prompts(2)
  start = np.random.default_rng(3).standard_normal(d)
  params = constructions.kernels(constructions.gradient_step(d, N, 2.0, start))
  w = 2.0 / N * np.einsum("pnd,pn->pd", x, y - x @ start)
  assert np.abs(_answers(params, prompts) - np.sum(w * q, 1)).max() < 1e-6


def _drawn(seed, **fields):
  return toy.parameters(_layer(**fields)[0], seed, np.zeros((B, N + 1, d + 1), np.float32))


def test_only_the_products_of_the_matrices_count():
  tokens, params = _tokens(*_prompts(4)), _drawn(5)
  y = _run(params, tokens)
  # A power of two is exact in floating point; W_V and P share one product, W_K and W_Q the other.
  scaled = {k: {"kernel": v["kernel"] * f} for (k, v), f in zip(sorted(params.items()), (2.0, 4.0, 0.5, 0.25))}
  assert sorted(params) == ["key", "out", "query", "value"]
  np.testing.assert_allclose(_run(scaled, tokens), y, rtol=1e-5, atol=1e-6)


def test_four_matrices_are_two_and_mahankalis_output_is_their_last_entry():
  tokens, params = _tokens(*_prompts(6)), _drawn(7)
  pv, kq = lsa.products(params, "four", d + 1)
  y = _run(params, tokens)
  two = jax.jit(functools.partial(lsa.two_matrices, keys="context"))(tokens, pv, kq)
  np.testing.assert_allclose(N * two, y, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(jax.jit(lsa.one_output)(tokens, pv[-1], kq), y[:, -1, -1], rtol=1e-4, atol=1e-5)
  kernels = [params[name]["kernel"].T for name in ("key", "query", "value", "out")]
  np.testing.assert_allclose(jax.jit(lsa.four_matrices)(tokens, *kernels), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["two", "gd", "gd++"])
def test_a_layer_is_the_products_it_says(form):
  tokens, params = _tokens(*_prompts(8)), _drawn(9, form=form)
  pv, kq = lsa.products(params, form, d + 1)
  want = jax.jit(functools.partial(lsa.two_matrices, keys="context"))(tokens, pv, kq)
  np.testing.assert_allclose(_run(params, tokens, form=form), want, rtol=1e-4, atol=1e-5)


def test_the_query_itself_is_read_in_zhangs_form_only():
  prompts, params = _prompts(10), _drawn(11, form="two")
  x, _, q = prompts
  pv, kq = lsa.products(params, "two", d + 1)
  tokens = _tokens(*prompts)
  apart = _run(params, tokens, form="two", keys="all") - _run(params, tokens, form="two")
  query = tokens[:, -1]
  want = np.einsum("bd,bd->b", query, query @ np.asarray(kq).T)[:, None] * (query @ np.asarray(pv).T) / N
  np.testing.assert_allclose(apart[:, -1], want, rtol=1e-4, atol=1e-5)


def test_the_start_of_the_flow_is_balanced_and_only_touches_the_blocks_of_the_theorem():
  layer = LinearSelfAttention(form="two", keys="all", init_scale=0.3)
  params = jax.jit(layer.init)(jax.random.key(0), np.zeros((1, 3, d + 1), np.float32))["params"]
  pv, kq = map(np.asarray, lsa.products(params, "two", d + 1))
  assert pv[-1, -1] == np.float32(0.3) and np.count_nonzero(pv) == 1
  np.testing.assert_allclose(np.linalg.norm(kq[:d, :d]), 0.3, rtol=1e-5)
  assert not kq[d].any() and not kq[:, d].any() and np.linalg.eigvalsh(kq[:d, :d]).min() > -1e-6


def test_the_order_of_pairs_does_not_matter_and_y_counts_linearly_with_one_step():
  x, y, q = _prompts(12)
  params = constructions.kernels(constructions.gradient_step(d, N, 5.0))
  answer = _answers(params, (x, y, q))
  np.testing.assert_allclose(_answers(params, (x[:, ::-1], y[:, ::-1], q)), answer, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(_answers(params, (x, -3 * y, q)), -3 * answer, rtol=1e-5, atol=1e-6)


def test_a_scalar_block_is_blind_to_rotations():
  x, y, q = _prompts(13)
  turn = np.linalg.qr(np.random.default_rng(14).standard_normal((d, d)))[0]
  params = constructions.kernels(constructions.gradient_step(d, N, 5.0))
  np.testing.assert_allclose(_answers(params, (x @ turn, y, q @ turn)), _answers(params, (x, y, q)), atol=2e-6)


def test_the_copy_layer_puts_every_y_beside_its_x():
  x, y, q = _prompts(15, n=3)
  T = 7
  sequence = np.zeros((B, T, d + 1 + T), np.float32)
  sequence[:, 0:6:2, :d], sequence[:, 1:6:2, d], sequence[:, 6, :d] = x, y, q
  sequence[..., d + 1:] = np.eye(T)
  params = constructions.kernels(constructions.copy_targets(d, T))
  made = sequence + _run(params, sequence, key_dim=T, value_dim=1)
  want = sequence.copy()
  want[:, 0:6:2, d] = y
  np.testing.assert_allclose(made, want, atol=1e-6)


delta_rule = jax.jit(functools.partial(chunk_recurrence, scale=1.0, return_final_state=True, precision="highest"))


def test_the_delta_rule_is_online_gradient_descent():
  x, y, q = _prompts(16)
  rates = np.random.default_rng(17).uniform(0.1, 1.9, (B, N))
  # The memory after pair i is w_i: the next key reads from it what was predicted before its own write.
  queries = np.concatenate([x[:, 1:], q[:, None]], 1)
  wide = lambda a: np.float32(a)[:, :, None]
  read, memory = delta_rule(wide(queries), wide(x), wide(y[..., None]), beta=wide(rates))
  w = oracles.online(x, y, rates)
  np.testing.assert_allclose(np.asarray(memory)[:, 0, :, 0], w, atol=2e-6)
  for i in (0, N // 2, N - 1):
    w_i = oracles.online(x[:, :i + 1], y[:, :i + 1], rates)
    np.testing.assert_allclose(np.asarray(read)[:, i, 0, 0], np.sum(w_i * queries[:, i], 1), atol=2e-6)


@pytest.mark.parametrize("fields, T, given, match", [
    (dict(form="three"), 3, {}, r"form='three' is unknown; choose from four, two, gd, gd\+\+"),
    (dict(keys="some"), 3, {}, r"keys='some' is unknown"),
    (dict(steps=0), 3, {}, r"steps=0 must be at least 1"),
    (dict(init_scale=0.0), 3, {}, r"init_scale=0.0 above 0"),
    (dict(form="gd", keys="causal"), 3, {}, r"keys='causal' takes form='four'"),
    (dict(), 1, {}, r"needs T=1 of at least 2 tokens"),
    (dict(), 3, dict(segment_ids=np.zeros((1, 3), int)), r"only keys='causal' takes a state or segment_ids"),
])
def test_what_is_no_layer_is_refused_with_the_numbers(fields, T, given, match):
  init = functools.partial(LinearSelfAttention(**fields).init, **given)
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, T, 4)))


def test_a_state_of_unknown_width_is_refused():
  with pytest.raises(ValueError, match="key_dim=0, value_dim=3: a state needs"):
    LinearSelfAttention(keys="causal", value_dim=3).init_state(1)


@pytest.mark.parametrize("make, match", [
    (lambda: constructions.gradient_step(0, 3, 1.0), "d=0 inputs and n=3 pairs"),
    (lambda: constructions.gd_plus_plus(2, 0, 1.0, 1.0), "d=2 inputs and n=0 pairs"),
    (lambda: constructions.copy_targets(2, 4), "tokens=4 odd"),
])
def test_what_cannot_be_constructed_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
