"""The one exception that means: the user's configuration is at fault."""

import difflib

LISTED = 300  # characters


class ConfigError(ValueError):
  """One line with the key, the value, the rule and the way out; ends a command with exit 2."""


def shown(value) -> str:
  """Returns the value as a message may quote it: its repr, cut to 200 characters."""
  text = repr(value)
  return text if len(text) <= 200 else text[:197] + "..."


def nearest(name: str, known) -> str:
  """Returns "did you mean 'x'?" for the closest known name, else the list of all, cut to 300 characters."""
  known = sorted(known)
  close = difflib.get_close_matches(name[:200], known, n=1)
  if close:
    return f"did you mean {close[0]!r}?"
  if not known:
    return "nothing is known here."
  listed = ", ".join(known)
  return f"known: {listed}." if len(listed) <= LISTED else f"known: {listed[:LISTED].rpartition(', ')[0]}, ... ({len(known)} in all)."
