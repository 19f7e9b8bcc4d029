"""The budgets that experiments/mixers.py promises, counted from traced models."""

import functools

import jax
import jax.numpy as jnp
import pytest

from research import arms, build, count
from research import config as configs
from research.judge import MATCHED

SPEC = "mixers:cpu"
STATE = 16 * 1024  # bytes per layer


@functools.cache
def _costs(name):
  """Returns (parameters, bytes of state, config) of one arm."""
  config = arms.config_of(SPEC, arms.of_experiment("mixers")[name])
  model = build.model_of(config, _task(), train=False)
  tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  params = jax.eval_shape(model.init, {"params": jax.random.key(0)}, tokens)["params"]
  return count.size(params), count.state_bytes(model), config


@functools.cache
def _task():
  return build.task_of(configs.load(SPEC)[2])


@pytest.mark.parametrize("name", arms.of_experiment("mixers"))
def test_every_arm_has_the_parameters_of_the_first(name):
  want, (found, _, config) = _costs("attention")[0], _costs(name)
  width = config.model.channel.hidden + (want - found) / (3 * config.model.width * config.model.depth)
  assert abs(found / want - 1) <= MATCHED, f"{found} against {want}: model.channel.hidden={8 * round(width / 8)} fits."


HAVE_IT = ("retention", "diag_attention")  # in the first set


@pytest.mark.parametrize("name", [*HAVE_IT, *configs.load_file("mixers").AT_STATE])
def test_every_arm_of_the_second_set_has_its_bytes_of_state(name):
  _, state, config = _costs(name if name in HAVE_IT else f"{name}_state")
  assert state / config.model.depth == pytest.approx(STATE, rel=0.05)
