"""Random keys of synthetic tasks: one for every (seed, split, step, row).

Each row has a key of its own, so a host that makes only its rows makes the same
ones as a host that makes them all.
"""

import jax
import jax.numpy as jnp

from research.tasks import fields

# Dims: B batch.


def of_rows(task, split: str, step, rows: slice):
  """Keys [B] of the chosen rows of a batch; `step` may be traced.

  Args:
    task: has `seed` and `batch_size`.
    split: "train" or "validation"; their keys never meet.
    step: which batch.
    rows: rows of the batch over all hosts.
  """
  fields.one_of("split", split, ("train", "validation"))
  key = jax.random.fold_in(jax.random.key(task.seed), ("train", "validation").index(split))
  key = jax.random.fold_in(key, step)
  # numpy would make the indices a constant of the program: B words for nothing.
  index_B = jnp.arange(task.batch_size, dtype=jnp.uint32)[rows]
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(index_B)
