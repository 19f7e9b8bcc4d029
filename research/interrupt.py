"""Ctrl-C and SIGTERM as a question that the loop asks between two steps.

    with interrupt.Interrupt() as stop:
      while step < steps and not stop.at(step): ...

Without a handler a process dies of SIGTERM with nothing saved. The first signal only sets a flag; a second one is
answered and changes nothing, so a save in progress completes; a third Ctrl-C leaves at once, and then the checkpoint
before it is the one that counts, because a step without a manifest does not exist.
"""

import os
import signal
import threading

import jax

from research import exit_codes


class Interrupt:
  """Context manager that catches SIGINT and SIGTERM; the handlers before it come back on exit.

  On several processes SIGTERM stays with jax.distributed, which tells every process to stop at the same step, and
  Ctrl-C is passed on to it.

  Attributes:
    requested: a signal has come (on this process).
  """

  def __init__(self):
    self.requested = False
    self._keyboard = 0
    self._previous = {}

  def at(self, step: int) -> bool:
    """Whether to save and leave at this step boundary; the same answer on every process."""
    if jax.process_count() == 1:
      return self.requested
    from jax.experimental import multihost_utils  # slow to import, and only needed on several hosts
    return multihost_utils.reached_preemption_sync_point(step)

  def __enter__(self):
    # Python allows handlers in the main thread only; elsewhere (a notebook's worker) nobody sends us signals.
    if threading.current_thread() is threading.main_thread():
      wanted = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
      self._previous = {number: signal.signal(number, self._handle) for number in wanted}
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      # None is a handler that C code installed (jax.distributed does): Python cannot put it back.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._previous = {}

  def _handle(self, number, _):
    self._keyboard += number == signal.SIGINT
    name = signal.Signals(number).name
    if self._keyboard == 3:
      _say(f"{name}: the third, leaving without a save; the last complete checkpoint stays.")
      os._exit(exit_codes.CRASH)
    if self.requested:
      _say(f"{name}: already stopping, the save goes on.")
    else:
      _say(f"{name}: stopping after this step, with a save.")
    self.requested = True
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)


def _say(line):
  # A print inside a handler may re-enter a buffered write that it interrupted, which raises.
  os.write(2, f"\n{line}\n".encode("ascii", "replace"))
