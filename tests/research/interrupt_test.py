"""Signals become a question, and the handlers of before come back."""

import os
import signal
import threading

import pytest

from research import exit_codes
from research import interrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_seen_at_the_next_step_and_not_before(number):
  before = signal.getsignal(number)
  with interrupt.Interrupt() as stop:
    assert not stop.at(0)
    os.kill(os.getpid(), number)
    assert stop.at(1) and stop.requested
    os.kill(os.getpid(), number)
    assert stop.at(2)
  assert signal.getsignal(number) is before


def test_outside_the_main_thread_it_only_does_not_catch():
  before, answers = signal.getsignal(signal.SIGTERM), []

  def worker():
    with interrupt.Interrupt() as stop:
      answers.append(stop.at(0))

  thread = threading.Thread(target=worker)
  thread.start()
  thread.join()
  assert answers == [False] and signal.getsignal(signal.SIGTERM) is before


def test_exit_codes_are_the_interface_of_launchers():
  codes = {name: value for name, value in vars(exit_codes).items() if name.isupper()}
  assert codes == {"DONE": 0, "CRASH": 1, "CONFIG": 2, "DIVERGED": 3, "STALLED": 4, "CLAIM_FAILED": 10,
                   "INCONCLUSIVE": 11, "PREEMPTED": 42}
