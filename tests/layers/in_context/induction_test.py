"""The written-down induction head copies, exactly, in the engine's own language model."""

import functools

import jax
import numpy as np
import pytest

from layers.in_context import induction
from layers.lm import LM
from layers.mixers.attention import Attention
from layers.norms.rms_norm import RMSNorm
from layers.placement import placement
from layers.stack import Stack

V, HALF = 9, 8
PARAMS = induction.parameters(V, 2 * HALF)
ATTENTION = functools.partial(Attention, heads=1, head_dim=max(V, 2 * HALF), rope_theta=0.0)
MODEL = LM(V, 3 * V + 2 * HALF, functools.partial(Stack, (ATTENTION,) * 2, None, RMSNorm, placement("none", 2)),
           max_positions=2 * HALF)
answer = jax.jit(lambda params, tokens: jax.nn.relu(MODEL.apply({"params": params}, tokens)[0]))


def _repeated(seed, rows=64):
  draw = np.random.default_rng(seed)
  half = np.stack([draw.permutation(V)[:HALF] for _ in range(rows)])
  return np.concatenate([half, half], axis=1)


def test_a_sequence_that_comes_again_is_continued_without_error():
  tokens = _repeated(0)
  p = np.asarray(answer(PARAMS, tokens))[:, HALF:-1]
  np.testing.assert_allclose(p, np.eye(V)[tokens[:, HALF + 1:]], atol=1e-6)


def test_without_the_first_layer_or_the_second_nothing_is_copied():
  tokens = _repeated(1)
  for layer in (0, 1):
    out = PARAMS["stack"]["scan_0_to_1"]["block_0"]["mixer"]["out"]["kernel"].copy()
    out[layer] = 0
    mixer = PARAMS["stack"]["scan_0_to_1"]["block_0"]["mixer"] | {"out": {"kernel": out}}
    p = answer(PARAMS | {"stack": {"scan_0_to_1": {"block_0": {"mixer": mixer}}}}, tokens)[:, HALF:-1]
    right = np.take_along_axis(np.asarray(p), tokens[:, HALF + 1:, None], axis=2)
    assert right.max() < 0.5


def test_followers_of_a_token_share_the_answer():
  tokens = np.zeros((64, 2 * HALF), np.int32)
  tokens[:, :6] = [3, 1, 3, 2, 4, 3]  # after 3 came 1 and 2
  p = np.asarray(answer(PARAMS, tokens))[:, 5]
  np.testing.assert_allclose(p, np.tile((np.eye(V)[1] + np.eye(V)[2]) / 2, (64, 1)), atol=1e-6)


def test_too_little_to_repeat_is_refused():
  with pytest.raises(ValueError, match="vocab=1 and tokens=8 must both be at least 2"):
    induction.parameters(1, 8)
