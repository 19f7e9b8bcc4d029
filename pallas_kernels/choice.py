"""Which implementation of a kernel runs a call: by name, or the first that can.

Naming one that cannot run is an error with the reason, never a silent fallback.
"""

from collections.abc import Callable
from typing import NamedTuple

NAMES = ("reference", "xla", "pallas_tpu", "pallas_gpu", "interpret")


class Choice(NamedTuple):
  """The backend that runs, why, and why not those that `auto` would have preferred."""

  name: str
  reason: str
  refused: dict[str, str]


def choose(name: str, platform: str, auto: tuple[str, ...], why_not: Callable[[str], str | None],
           unmeasured: dict[str, str]) -> Choice:
  """Resolves the name of a backend.

  Args:
    name: "auto" or one of NAMES.
    platform: "cpu", "gpu" or "tpu".
    auto: what "auto" tries, best first.
    why_not: backend -> reason why it cannot run the call, or None.
    unmeasured: backend -> reason why "auto" leaves it to the caller.

  Raises:
    ValueError: the name is unknown, or the named backend cannot run the call.
  """
  if name == "auto":
    refused = dict(unmeasured)
    for candidate in auto:
      reason = why_not(candidate)
      if reason is None:
        return Choice(candidate, f"first on the list for {platform} that can run this call", refused)
      refused[candidate] = reason
    raise ValueError(f"no backend for {platform}: {refused}.")
  if name not in NAMES:
    raise ValueError(f"backend={name!r} must be 'auto' or one of {NAMES}.")
  if reason := why_not(name):
    raise ValueError(f"backend={name!r} cannot run this call on {platform}: {reason}; "
                     "use backend='auto' or 'xla'.")
  return Choice(name, "named by the caller", {})
