"""The bias that balances recursions, in the engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import program as programs
from tests.research import toy


@pytest.mark.slow
def test_the_bias_of_a_depth_moves_by_microbatch_in_every_seed_and_layer():
  rate = 2.0**-20  # too small to change a choice
  config = toy.config(model__depth=4, model__remat="full", optim__accumulate=2,
                      model__policy__name="token_choice_recursion.TokenChoiceRecursion", model__policy__recursions=2,
                      model__policy__bias_rate=rate)
  program = programs.make(config, seeds=2)
  state, streak = program.step(program.init(jnp.arange(2)), None)
  assert np.all(streak == 0)
  (path, bias), = jax.tree_util.tree_leaves_with_path(jax.device_get(state.extra))
  assert path[0].key == "moe_state" and bias.shape == (2, 2, 2)  # seeds, layers, recursions
  np.testing.assert_array_equal(np.abs(bias), 2 * rate)
  np.testing.assert_array_equal(bias[..., 0], -bias[..., 1])
