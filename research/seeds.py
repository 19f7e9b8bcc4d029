"""Several seeds of one config: side by side in one vmapped step, or one after the other.

On an accelerator, or for tiny models, one vmapped step wastes less; on a CPU the
models may only get in each other's way. `faster` times both for a few steps.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from research import program as programs

TIMED_STEPS, TIMED_S = 3, 0.25  # at least so many, and for so long


def _seconds_per_step(program, seeds) -> float:
  """Returns the median of a few steps, after one that compiles."""
  state = program.init(seeds)
  batch = None if program.task.on_device else program.put_train(program.train_batch(seeds, 0))
  times = []
  while len(times) <= TIMED_STEPS or sum(times[1:]) < TIMED_S:
    begun = time.perf_counter()
    state, _ = program.step(state, batch)
    jax.block_until_ready(state)
    times.append(time.perf_counter() - begun)
  return statistics.median(times[1:])


def faster(config, seeds: tuple[int, ...], say):
  """Returns the vmapped program of all seeds if its step is faster than all steps in turn, else None.

  One seed is never vmapped: a clock that cannot tell the two apart would choose the bits of the run.
  """
  if len(seeds) == 1:
    return None
  single = _seconds_per_step(programs.make(config), seeds[0])
  vmapped = programs.make(config, seeds=len(seeds))
  together = _seconds_per_step(vmapped, jnp.asarray(seeds))
  in_turn = single * len(seeds)
  chosen = "vmapped" if together < in_turn else "one after the other"
  say(f"{len(seeds)} seeds: {together * 1e3:.1f} ms a step vmapped, {in_turn * 1e3:.1f} ms one by one; "
      f"training them {chosen}")
  return vmapped if together < in_turn else None
