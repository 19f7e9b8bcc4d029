"""Text from a state of fixed size is the text of reading everything again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import build
from research import config as configs
from research import monitor
from research import sample


@functools.cache
def _model(pattern):
  """An untrained model with weights large enough for its likeliest token to change."""
  config = configs.load("byte_lm:smoke")[2]
  configs.override(config, {
      "task.name": "recall.MultiQueryRecall", "model.pattern": pattern, "model.width": 16, "model.depth": 2,
      "model.attention.heads": 2, "model.attention.head_dim": 8, "model.mixer.heads": 2, "model.mixer.key_dim": 4,
      "model.mixer.value_dim": 4, "model.embedding_std": 1.0})
  model = build.model_of(config, build.task_of(config), train=False)
  return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))


PROMPT_BT = np.random.default_rng(0).integers(0, 256, (2, 5)).astype(np.int32)


@pytest.mark.parametrize("pattern", ["mixer", "attention", "mixer,attention"])
def test_the_likeliest_text_is_that_of_full_forward_passes(pattern):
  model, variables = _model(pattern)
  got_BT = sample.generate(model, variables, PROMPT_BT, jax.random.key(1), length=12, temperature=0.0)
  text_BT = jnp.concatenate([PROMPT_BT, got_BT], axis=1)
  logits_BTV = jax.jit(lambda x: model.apply(variables, x)[0])(text_BT)
  np.testing.assert_array_equal(got_BT, jnp.argmax(logits_BTV, axis=-1)[:, 4:-1])
  assert len(np.unique(got_BT)) > 3


def test_one_key_is_one_text_and_another_key_another():
  model, variables = _model("mixer")
  draw = lambda key: np.asarray(sample.generate(model, variables, PROMPT_BT, jax.random.key(key), length=12))
  np.testing.assert_array_equal(draw(2), draw(2))
  assert np.any(draw(2) != draw(3))


def test_a_longer_text_begins_like_the_shorter_and_costs_one_program():
  model, variables = _model("mixer")
  short_BT = sample.generate(model, variables, PROMPT_BT, jax.random.key(2), length=12)
  compiles = monitor.Compiles()
  key = jax.random.key(2)
  before = compiles.count
  long_BT = sample.generate(model, variables, PROMPT_BT, key, length=400)
  jax.block_until_ready(long_BT)
  assert compiles.count - before <= 1
  np.testing.assert_array_equal(long_BT[:, :12], short_BT)
