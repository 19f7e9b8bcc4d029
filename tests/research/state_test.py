"""What a state tells of the run that it belongs to."""

import jax
import numpy as np
import pytest

from research import leaves
from research import program as programs
from research import state as states
from tests.research import toy


@pytest.mark.parametrize("seed", [3, 2047])
def test_a_state_leads_back_to_its_beginning(seed):
  program = programs.make(toy.config())
  first = program.init(seed)
  later = first.replace(step=first.step + 7, cursor=first.cursor + 7, params=jax.tree.map(lambda p: 2 * p, first.params))
  assert states.seed_of(later) == seed
  found = leaves.named_leaves(program.beginning(later))
  for path, leaf in leaves.named_leaves(first).items():
    np.testing.assert_array_equal(leaves.to_host(found[path]), leaves.to_host(leaf))
