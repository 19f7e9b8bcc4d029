"""Keeps the noise of orbax off the terminal: a failed save is one line of ours.

Orbax logs each save in some thirty INFO lines and each failure with a traceback. After a failure its remaining writes
finish, or fail too, around an event loop that is closed by then: Python prints each of those as an "Exception
ignored", asyncio logs it as never retrieved.
"""

import logging as std_logging
import sys
import traceback

from absl import logging


def silence_orbax():
  """Drops the log records that orbax makes, and those ignored exceptions; calling it again changes nothing."""
  logging.get_absl_logger().addFilter(_not_logged_by_orbax)
  std_logging.getLogger("asyncio").addFilter(_not_raised_in_orbax)
  if not isinstance(sys.unraisablehook, _Unraisable):
    sys.unraisablehook = _Unraisable(sys.unraisablehook)


def _not_logged_by_orbax(record):
  return "/orbax/" not in record.pathname


def _not_raised_in_orbax(record):
  frames = traceback.extract_tb(record.exc_info[2]) if record.exc_info else ()
  return not any("/orbax/" in frame.filename for frame in frames)


class _Unraisable:
  """The hook that was there before, except for writes that outlive their event loop."""

  def __init__(self, previous):
    self._previous = previous

  def __call__(self, event):
    if not (isinstance(event.exc_value, RuntimeError) and str(event.exc_value) == "Event loop is closed"):
      self._previous(event)
