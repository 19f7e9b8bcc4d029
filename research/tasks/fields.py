"""Checks that tasks make of their fields: one line, beginning with the field's name."""

import operator

PLACES = 2**28  # tokens in a batch over all hosts, at most


def _shown(value) -> str:
  # Python refuses to print numbers of thousands of digits.
  if isinstance(value, int) and abs(value) >= 10**40:
    return "(more than 40 digits)"
  return f"{value!r:.200}"


def whole(name: str, value, least: int, most: int, why: str) -> None:
  """Raises ValueError unless `value` is a whole number in [least, most]."""
  if isinstance(value, bool) or not isinstance(value, int):
    raise ValueError(f"{name}={_shown(value)} must be a whole number from {least} to {most}; "
                     f"{why}.")
  if not least <= value <= most:
    side = f"at least {least}" if value < least else f"at most {most}"
    raise ValueError(f"{name}={_shown(value)} must be {side}; {why}.")


def real(name: str, value, least: float, most: float, why: str) -> None:
  """Raises ValueError unless `value` is a number in [least, most]; nan is none."""
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
    raise ValueError(f"{name}={_shown(value)} must be a number from {least} to {most}; {why}.")


def words(name: str, value, why: str) -> None:
  """Raises ValueError unless `value` is a string that a file name can hold."""
  if not isinstance(value, str) or "\0" in value or len(value) > 4096:
    raise ValueError(f"{name}={_shown(value)} must be text without NUL of at most 4096 "
                     f"characters; {why}.")


def one_of(name: str, value, names: tuple) -> None:
  """Raises ValueError unless `value` is one of `names`."""
  if not isinstance(value, (str, bool)) or value not in names:
    raise ValueError(f"{name}={_shown(value)} must be one of {', '.join(map(str, names))}.")


def batch(batch_size, seed, places: int = 1) -> None:
  """Checks the fields that every task has.

  Args:
    batch_size: sequences over all hosts.
    seed: of the data.
    places: tokens in one sequence.
  """
  whole("batch_size", batch_size, 1, PLACES // places,
        f"it counts sequences over all hosts, of {places} tokens each")
  whole("seed", seed, 0, 2**31 - 1, "it seeds the order of the data")


def cursor(split: str, step) -> int:
  """Checks the arguments of a host-side `batch` and returns the step as an int."""
  one_of("split", split, ("train", "validation"))
  step = operator.index(step)
  whole("step", step, 0, 2**31 - 1, "it counts batches from 0")
  return step
