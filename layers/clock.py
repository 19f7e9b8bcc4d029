"""The step of training, for layers whose schedule is a pure function of it.

Every leaf of the collection "clock" IS the number of steps taken so far; the
training step sets it before the forward pass. A counter of its own calls would be
wrong for a layer that remat runs twice or that sees several microbatches a step.
"""

import jax
import jax.numpy as jnp

COLLECTION = "clock"


def now(module):
  """Returns the steps taken so far, int32; runs inside a compact method."""
  return module.variable(COLLECTION, "step", jnp.zeros, (), jnp.int32).value


def set_to(clocks, step):
  """Returns the collection with every leaf at `step`."""
  return jax.tree.map(lambda leaf: jnp.full(leaf.shape, step, leaf.dtype), clocks)
