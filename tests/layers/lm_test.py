"""The language model: decoding is the whole forward, the tied head shares, positions end."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.channel.mlp import MLP
from layers.lm import LM
from layers.mixers.attention import Attention
from layers.norms.rms_norm import RMSNorm
from layers.placement import placement
from layers.stack import Stack
from tests.layers import toy

B, T, D, VOCAB = 2, 11, 8, 13

# Attention without rotary positions: only the learned ones order the tokens.
_attention = functools.partial(Attention, heads=2, head_dim=4, max_tokens=16, rope_theta=0.0)
_stack = functools.partial(Stack, (_attention,) * 2, functools.partial(MLP, hidden=8), RMSNorm,
                           placement("pre", 2))
MODEL = LM(VOCAB, D, _stack, max_positions=16)
run = jax.jit(MODEL.apply)


def _tokens(seed, T=T):
  return np.random.default_rng(seed).integers(0, VOCAB, (B, T))


@functools.cache
def _parameters():
  return {"params": toy.parameters(MODEL, 0, _tokens(0), spread=0.7)}


def _forward(tokens, ids=None, states=None):
  ids = np.zeros(tokens.shape, int) if ids is None else ids
  return run(_parameters(), tokens, MODEL.init_state(B) if states is None else states, ids)


def _decode(tokens, states):
  logits = []
  for t in range(tokens.shape[1]):
    step, states = _forward(tokens[:, t:t + 1], states=states)
    logits.append(step)
  return np.concatenate(logits, 1), states


def _close(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_decoding_token_by_token_is_the_whole_forward():
  tokens = _tokens(1)
  whole, final = _forward(tokens)
  logits, states = _decode(tokens, MODEL.init_state(B))
  _close(logits, whole)
  jax.tree.map(_close, states, final)
  np.testing.assert_array_equal(states["seen_B"], T)


def test_packed_documents_restart_their_positions():
  tokens, ids = _tokens(2), np.repeat([[4] * 5 + [1] * 6], B, 0)
  packed, _ = _forward(tokens, ids)
  # Rows of one length and trailing padding, so that one compiled function serves all.
  alone = lambda tokens: _forward(np.pad(tokens, ((0, 0), (0, T - tokens.shape[1]))),
                                  np.pad(0 * tokens, ((0, 0), (0, T - tokens.shape[1])),
                                         constant_values=-1))[0]
  _close(packed[:, :5], alone(tokens[:, :5])[:, :5])
  _close(packed[:, 5:], alone(tokens[:, 5:])[:, :6])


def test_decoding_continues_the_last_document_of_a_packed_row():
  tokens = _tokens(3)
  whole, _ = _forward(tokens, np.repeat([[4] * 5 + [1] * 6], B, 0))
  start, states = _forward(tokens, np.repeat([[4] * 5 + [1] * 3 + [-1] * 3], B, 0))
  np.testing.assert_array_equal(states["seen_B"], 3)
  _close(start[:, :8], whole[:, :8])
  _close(_decode(tokens[:, 8:], states)[0], whole[:, 8:])


def test_learned_positions_tell_places_apart():
  tokens = np.full((B, T), 3)
  logits = np.asarray(_forward(tokens)[0])
  assert np.abs(np.diff(logits, axis=1)).max(-1).min() > 1e-3


def test_a_row_longer_than_its_positions_is_refused_with_the_numbers():
  with pytest.raises(ValueError, match=r"max_positions=16 must cover the row of 17 tokens"):
    jax.eval_shape(MODEL.init, jax.random.key(0), _tokens(4, T=17))


def test_no_states_come_back_where_none_went_in():
  assert jax.eval_shape(MODEL.apply, _parameters(), _tokens(5))[1] is None


def _bare(tied):
  return LM(VOCAB, D, toy.PointwiseStack, tied=tied)


def test_a_tied_head_is_the_transposed_embedding():
  tokens, model = _tokens(6), _bare(tied=True)
  params = toy.parameters(model, 7, tokens)
  assert set(params) == {"embedding"}
  table = np.asarray(params["embedding"]["embedding"], np.float64)
  logits = jax.jit(model.apply)({"params": params}, tokens)[0]
  np.testing.assert_allclose(logits, table[tokens] @ table.T, rtol=1e-5, atol=1e-5)


def test_an_untied_head_is_a_matrix_of_its_own():
  tokens, model = _tokens(8), _bare(tied=False)
  params = toy.parameters(model, 9, tokens)
  table, head = (np.asarray(params[name][leaf], np.float64) for name, leaf in
                 (("embedding", "embedding"), ("head", "kernel")))
  logits = jax.jit(model.apply)({"params": params}, tokens)[0]
  np.testing.assert_allclose(logits, table[tokens] @ head, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_only_a_tied_head_teaches_the_vectors_of_tokens_that_never_came_in(tied):
  tokens, model = np.zeros((B, T), int), _bare(tied)
  params = toy.parameters(model, 10, tokens)
  loss = lambda p: jnp.mean(nn.logsumexp(model.apply({"params": p}, tokens)[0], axis=-1))
  grad = np.asarray(jax.jit(jax.grad(loss))(params)["embedding"]["embedding"])
  assert np.any(grad[0] != 0) and np.any(grad[1:] != 0) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_float32_whatever_the_stream(tied):
  model = LM(VOCAB, D, _stack, tied=tied, max_positions=16, dtype=jnp.bfloat16)
  params = jax.eval_shape(model.init, jax.random.key(0), _tokens(11))
  logits, _ = jax.eval_shape(model.apply, params, _tokens(11))
  assert logits.dtype == jnp.float32
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
