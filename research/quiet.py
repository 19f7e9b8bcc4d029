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
  std_logging.getLogger("asyncio").addFilter(_not_raised_by_orbax)
  if not isinstance(sys.unraisablehook, _Unraisable):
    sys.unraisablehook = _Unraisable(sys.unraisablehook)


def _not_logged_by_orbax(record):
  return "/orbax/" not in record.pathname


def _not_raised_by_orbax(record):
  return not record.exc_info or not _from_orbax(record.exc_info[1])


def _from_orbax(error):
  if error is None:
    return False
  # Errors that tensorstore hands over were never raised in Python: only their text tells where they come from.
  frames = traceback.extract_tb(error.__traceback__)
  return ".orbax-checkpoint-tmp" in str(error) or any("/orbax/" in frame.filename for frame in frames)


class _Unraisable:
  """The hook that was there before, except for writes of orbax that outlive their event loop."""

  def __init__(self, previous):
    self._previous = previous

  def __call__(self, event):
    coroutine = getattr(event.object, "cr_code", None)
    orphan = (str(event.exc_value) == "Event loop is closed" or _from_orbax(event.exc_value)
              or (coroutine is not None and "/orbax/" in coroutine.co_filename))
    if not orphan:
      self._previous(event)
