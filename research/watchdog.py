"""A thread that ends a run which has stopped stepping, and shows where it stands.

A hung collective or a dead file server leaves a job that costs money and does nothing. After `stall_seconds` without
a beat the stacks of all threads go to stderr and the process exits with code 4.
"""

import faulthandler
import os
import sys
import threading

from research import exit_codes


class Watchdog:
  """Context manager; call `beat()` after every step.

  Time is counted in ticks of the watching thread, not read from a clock: a process that was stopped (Ctrl-Z, a
  sleeping laptop) or a clock that jumps does not look like a stall.

  Args:
    stall_seconds: the longest silence; 0 watches nothing.
  """

  def __init__(self, stall_seconds: float):
    if stall_seconds < 0:
      raise ValueError(f"stall_seconds={stall_seconds} must be >= 0 (0 turns the watchdog off).")
    self._limit = stall_seconds
    self._left = stall_seconds
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

  def beat(self, allow: float = 0.0):
    """A step is done; the next may take `allow` seconds more than usual (a compilation, a restore)."""
    self._left = self._limit + allow

  def __enter__(self):
    if self._limit:
      self._thread.start()
    return self

  def __exit__(self, *_):
    self._closed.set()
    if self._limit:
      self._thread.join()

  def _watch(self):
    tick = min(1.0, self._limit / 10)
    while not self._closed.wait(tick):
      self._left -= tick
      if self._left <= 0:
        stderr = sys.__stderr__
        stderr.write(f"\nno step for {self._limit:g} s, stacks of all threads follow, then exit {exit_codes.STALLED}\n")
        stderr.flush()
        faulthandler.dump_traceback(file=stderr, all_threads=True)
        os._exit(exit_codes.STALLED)
