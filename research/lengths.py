"""How a model does on sequences longer than it was trained on: config.train.lengths = (1, 2, 4, 8).

The task makes validation sequences of n times the tokens, n times fewer to a batch; every metric of the last
evaluation gets a companion with "_at_<n>x" behind its name.
"""

import dataclasses

import numpy as np

from research.errors import ConfigError, shown


def check(config, task) -> None:
  """Refuses lengths of a task whose sequences cannot be made longer.

  Raises:
    ConfigError: a factor below 1, or a task without `tokens` that are made on the device.
  """
  lengths = config.train.lengths
  for n in lengths:
    if not 1 <= n <= 1024:
      raise ConfigError(f"config.train.lengths={shown(lengths)}: each must be from 1 to 1024, a factor on the tokens.")
  if max(lengths, default=1) > 1 and not (task.on_device and hasattr(task, "tokens")):
    raise ConfigError(f"config.train.lengths={shown(lengths)}: {config.task.name} does not make sequences of any length; "
                      "set it to 1 or choose a synthetic task.")
  for n in _beyond(lengths):
    _longer(task, n)


def evaluated(program, state) -> dict[str, np.ndarray]:
  """Returns metric -> mean over validation batches (an array over seeds, if any) for every length."""
  found = {}
  for n in _beyond(program.config.train.lengths):
    longer = program.on(_longer(program.task, n))
    found |= {f"{k}_at_{n}x": v for k, v in longer.evaluated(state, 0).items()}
  return found


def _beyond(lengths) -> list[int]:
  """Returns the factors above 1: the length of training is part of every evaluation."""
  return [n for n in lengths if n > 1]


def _longer(task, n):
  try:
    return dataclasses.replace(task, tokens=n * task.tokens, batch_size=max(1, task.batch_size // n))
  except ValueError as error:
    raise ConfigError(f"config.train.lengths: {n} times the tokens: {error}") from error
