"""Command lines: argparse, but a wrong flag is one line, and `--config.a.b=v` sets a leaf of the config."""

import argparse

from research.errors import ConfigError, nearest


class Parser(argparse.ArgumentParser):
  """argparse whose complaints are ConfigErrors."""

  def error(self, message):
    raise ConfigError(message)


def parse(parser, argv):
  """Returns (flags, dotted overrides).

  Raises:
    ConfigError: an unknown flag, or an override without a value.
  """
  given, rest = parser.parse_known_args(argv)
  overrides, rest = {}, list(rest)
  while rest:
    word = rest.pop(0)
    key, equals, value = word.partition("=")
    if not key.startswith("--config."):
      known = [s for action in parser._actions for s in action.option_strings]
      raise ConfigError(f"unknown argument {word!r}; {nearest(key, known)}")
    if not equals:
      if not rest:
        raise ConfigError(f"{key} needs a value: {key}=...")
      value = rest.pop(0)
    overrides[key.removeprefix("--config.")] = value
  return given, overrides


def seeds_of(text: str) -> tuple[int, ...]:
  """Returns the seeds that "A:B" or "N" means."""
  first, colon, last = text.partition(":")
  good = first.isdecimal() and (last.isdecimal() if colon else not last)
  seeds = tuple(range(int(first), int(last) if colon else int(first) + 1)) if good else ()
  if not 0 < len(seeds) <= 10_000:
    raise ConfigError(f"--seeds={text!r} must be A:B with 0 <= A < B, as in 0:5 for five seeds.")
  return seeds
