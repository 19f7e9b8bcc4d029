"""Rules of the fields that state space layers share, and their steps at first."""

import jax
import numpy as np


def check_form(form: str) -> None:
  """Refuses a form that is not "conv" or "recurrent".

  Raises:
    ValueError: it is another.
  """
  if form not in ("conv", "recurrent"):
    raise ValueError(f"form={form!r} must be one of conv, recurrent.")


def check_order(order: int) -> None:
  """Refuses an order whose modes do not come in conjugate pairs.

  Raises:
    ValueError: it is odd or below 2.
  """
  if order < 2 or order % 2:
    raise ValueError(f"order={order} must be even and at least 2: modes come in conjugate pairs.")


def check_steps(low: float, high: float) -> None:
  """Refuses a range of steps that is empty or reaches 0.

  Raises:
    ValueError: low > high or low <= 0.
  """
  if not 0 < low <= high:
    raise ValueError(f"step_min={low} must be above 0 and at most step_max={high}.")


def log_steps(channels: int, low: float, high: float):
  """Returns an initialiser of [channels] logarithms, uniform between those of low and high."""
  return lambda key: jax.random.uniform(key, (channels,), minval=np.log(low), maxval=np.log(high))
