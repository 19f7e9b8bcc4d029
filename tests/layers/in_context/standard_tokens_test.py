"""Softmax attention that copies and a gradient step behind it, written down, on x and y as tokens of their own."""

import functools

import jax
import numpy as np
import pytest

from layers.in_context import filters, oracles, probes, prompts
from layers.in_context import standard_tokens as st
from layers.in_context.linear_self_attention import LinearSelfAttention
from layers.mixers.attention import Attention
from layers.norms.rms_norm import RMSNorm
from layers.placement import placement
from layers.regressor import Regressor
from layers.stack import Stack
from research import in_context_copying

B, N, d, P, ETA = 5, 10, 3, 10, 2.0
T, D = 2 * N + 1, P + d + 1
COPIER = functools.partial(Attention, heads=1, head_dim=20, rope_theta=0.0, direction="bidirectional")
MODEL = Regressor(D, functools.partial(Stack, (COPIER, LinearSelfAttention), None, RMSNorm, placement("none", 2)))
PARAMS = st.parameters(d, N, ETA)
COPY = PARAMS["stack"]["layers_0_to_0"]["block_0"]["mixer"]
answer = jax.jit(lambda params, tokens: MODEL.apply({"params": params}, tokens)[0][:, -1])
copied = jax.jit(lambda tokens: tokens + COPIER().apply({"params": COPY}, tokens)[0])
encode = jax.jit(lambda drawn: st.placed(prompts.interleaved(drawn), P))


def _drawn(seed):
  draw = np.random.default_rng(seed)
  x, q = draw.uniform(-1, 1, (B, N, d)).astype(np.float32), draw.uniform(-1, 1, (B, d)).astype(np.float32)
  w = draw.standard_normal((B, d)).astype(np.float32)
  return prompts.Prompts(x, np.einsum("pnd,pd->pn", x, w), q, np.sum(q * w, 1), w)


def _step(drawn, eta=ETA):
  found = oracles.decompose(np.float64(drawn.x_BND), np.float64(drawn.y_BN))
  return np.sum(oracles.weights(found, filters.gradient_descent(found.l_PD, N, [eta])) * drawn.query_BD, 1)


def test_places_are_sines_and_cosines_of_all_frequencies():
  t, f = np.arange(T)[:, None], 10_000.0 ** (-2 * np.arange(P // 2) / P)
  np.testing.assert_allclose(st.table(T, P), np.concatenate([np.sin(t * f), np.cos(t * f)], 1), atol=1e-12)


def test_tokens_keep_their_numbers_behind_their_places():
  drawn = _drawn(0)
  tokens = np.asarray(encode(drawn))
  assert tokens.shape == (B, T, D)
  np.testing.assert_array_equal(tokens[..., P:], np.asarray(jax.jit(prompts.interleaved)(drawn)))
  np.testing.assert_allclose(tokens[..., :P], np.broadcast_to(st.table(T, P), (B, T, P)), atol=1e-6)


def test_the_softmax_layer_puts_every_y_beside_its_x_and_changes_nothing_else():
  drawn = _drawn(1)
  tokens = np.asarray(encode(drawn))
  want = tokens.copy()
  want[:, 0:-1:2, -1] = drawn.y_BN
  np.testing.assert_allclose(copied(tokens), want, atol=1e-6)


def test_copying_and_a_constructed_layer_are_one_gradient_step_on_standard_tokens():
  drawn = _drawn(2)
  assert np.abs(answer(PARAMS, encode(drawn)) - _step(drawn)).max() < 1e-5


def test_the_gradient_step_answers_0_where_nothing_was_copied():
  silent = jax.tree.map(np.copy, PARAMS)
  silent["stack"]["layers_0_to_0"]["block_0"]["mixer"]["out"]["kernel"][:] = 0
  assert not np.asarray(answer(silent, encode(_drawn(3)))).any()


def test_the_order_of_pairs_does_not_matter_although_tokens_have_places():
  drawn = _drawn(4)
  turned = drawn._replace(x_BND=drawn.x_BND[:, ::-1], y_BN=drawn.y_BN[:, ::-1])
  np.testing.assert_allclose(answer(PARAMS, encode(turned)), answer(PARAMS, encode(drawn)), atol=1e-5)


def test_the_copying_layer_reaches_the_next_token_and_no_other():
  tokens = encode(_drawn(5))[:2]
  own, following, others = probes.reach(copied, tokens)
  # The residual is the identity of D numbers, the copy a single one.
  np.testing.assert_allclose([own, following, others], [D**0.5, 1.0, 0.0], rtol=1e-5, atol=1e-6)
  found = in_context_copying.copying(MODEL, {"params": PARAMS}, tokens)
  np.testing.assert_allclose([found["copying/own"], found["copying/label"]], [own, following], rtol=1e-5)
  assert found["copying/label_ratio"] > 1e3 and found["copying/query_label"] < 1e-3


def test_a_layer_that_reads_all_tokens_alike_has_the_ratio_one():
  even = jax.tree.map(np.copy, PARAMS)
  even["stack"]["layers_0_to_0"]["block_0"]["mixer"]["query"]["kernel"][:] = 0
  found = in_context_copying.copying(MODEL, {"params": even}, encode(_drawn(6))[:2])
  np.testing.assert_allclose([found["copying/label_ratio"], found["copying/label"]], [1.0, 1 / T], rtol=1e-4)


@pytest.mark.parametrize("make, match", [
    (lambda: st.table(5, 7), "places=7 must be even and at least 2"),
    (lambda: st.parameters(d, N, ETA, places=2), "places=2 numbers cannot tell 21 tokens apart"),
    (lambda: st.parameters(d, N, ETA, key_dim=8), "key_dim=8 must be at least places=10"),
    (lambda: st.parameters(0, N, ETA), "d=0 inputs and n=10 pairs"),
])
def test_what_cannot_be_written_down_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
