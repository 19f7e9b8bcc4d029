"""The mixer against softmax over each block by hand, its limits as full and as no attention, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import attention, diag_attention
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, T = 2, 4, 11


def _layer(**fields):
  return diag_attention.DiagAttention(heads=H, head_dim=K, **fields)


@pytest.mark.parametrize("block, weights", [(4, "softmax"), (4, "relu"), (1, "softmax")])
def test_a_token_reads_the_earlier_tokens_of_its_block(block, weights):
  layer = _layer(block=block, weights=weights, rope_theta=0.0)
  x = by_hand.tokens(0, T=T)
  params = {"params": toy.parameters(layer, 1, x)}
  p = by_hand.wide(params["params"])
  q, k, v = (np.einsum("btd,dhk->bthk", x, p[name]["kernel"]) for name in ("query", "key", "value"))
  y = np.zeros_like(v)
  for t in range(T):
    read = slice(t - t % block, t + 1)
    score = np.einsum("bhk,bshk->bhs", q[:, t], k[:, read]) / np.sqrt(K)
    score = np.maximum(score, 0) if weights == "relu" else np.exp(score)
    if weights == "softmax":
      score /= score.sum(-1, keepdims=True)
    y[:, t] = np.einsum("bhs,bshk->bhk", score, v[:, read])
  y = y.reshape(2, T, -1)
  if weights == "relu":
    y = by_hand.rms(y, 1.0, 1e-6)
  assert by_hand.error(jax.jit(layer.apply)(params, x)[0], y @ p["out"]["kernel"]) < 1e-5


def test_one_block_for_all_is_attention():
  layer, full = _layer(block=16), attention.Attention(heads=H, head_dim=K)
  x = by_hand.tokens(2, T=T)
  params = toy.parameters(layer, 3, x)
  kernel = params["out"]["kernel"]
  shaped = params | dict(out=dict(kernel=kernel.reshape(H, K, -1)))
  want = jax.jit(full.apply)({"params": shaped}, x)[0]
  assert by_hand.error(jax.jit(layer.apply)({"params": params}, x)[0], np.asarray(want)) < 1e-5


def test_blocks_begin_with_their_document():
  # Documents of 3, 5 and 1 tokens: none begins where a row is cut, and one block spans a cut.
  layer = _layer(block=2)
  x = by_hand.tokens(4, T=9)
  params = {"params": toy.parameters(layer, 5, x)}
  run = jax.jit(layer.apply)
  ids = np.repeat([[4, 0, 2]], 2, 0).repeat([3, 5, 1], 1).astype(np.int32)
  apart = np.concatenate([run(params, part)[0] for part in np.split(x, [3, 8], axis=1)], 1)
  np.testing.assert_allclose(run(params, x, None, ids)[0], apart, rtol=1e-5, atol=1e-5)


def test_the_state_is_empty_at_the_end_of_a_block():
  layer = _layer(block=4)
  x = by_hand.tokens(6, T=8)
  state = jax.jit(layer.apply)({"params": toy.parameters(layer, 7, x)}, x)[1]
  assert not np.any(state["k_BWHK"]) and not np.any(state["v_BWHK"])
  np.testing.assert_array_equal(state["seen_B"], 8)


@pytest.mark.parametrize("fields, words", [
    (dict(block=0), "block=0 must be at least 1 token"),
    (dict(weights="elu"), "weights='elu' is unknown; choose from softmax, relu")])
def test_fields_without_meaning_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(diag_attention.DiagAttention(**fields).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
