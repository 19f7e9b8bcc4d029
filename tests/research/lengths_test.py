"""Longer sequences than those of training: made by the task, scored like the others, refused where there are none."""

import dataclasses

import jax
import numpy as np
import pytest

from research import config as configs
from research import lengths
from research import program as programs
from research import step as steps
from research.errors import ConfigError
from tests.research import toy

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize("seeds", [0, 2])
def test_a_length_is_scored_as_a_run_on_that_length_would_be(seeds):
  program = programs.make(toy.config(train__lengths=(1, 2, 4)), seeds=seeds)
  state = program.init(np.arange(seeds, dtype=np.int32) if seeds else 0)
  found = lengths.evaluated(program, state)
  assert set(found) == {f"eval/{k}_at_{n}x" for k in ("loss", "accuracy") for n in (2, 4)}
  one = jax.tree.map(lambda x: x[-1], state) if seeds else state
  long = dataclasses.replace(program.task, tokens=4 * program.task.tokens, batch_size=program.task.batch_size // 4)
  run = jax.jit(lambda i: steps.eval_step(one, long.batch("validation", i), model=program.model, task=long)["loss"])
  sums = [run(i) for i in range(2)]
  total, weight = np.sum(np.asarray(sums, np.float64), axis=0)
  got = found["eval/loss_at_4x"]
  np.testing.assert_allclose(got[-1] if seeds else got, total / weight, rtol=1e-5)


def test_the_length_of_training_costs_nothing_more():
  assert lengths.evaluated(programs.make(toy.config()), None) == {}


@pytest.mark.parametrize("given", [(0,), (1, 2000)])
def test_a_length_that_is_none_is_refused(given):
  with pytest.raises(ConfigError, match="from 1 to 1024"):
    programs.make(toy.config(train__lengths=given))


def test_real_data_has_one_length():
  config = configs.load("digits:smoke")[2]
  configs.override(config, {"train.lengths": "1,2"})
  with pytest.raises(ConfigError, match="does not make sequences of any length"):
    programs.make(config)
