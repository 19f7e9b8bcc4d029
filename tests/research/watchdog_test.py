"""A run that stopped stepping ends with code 4 and its stacks; one that steps, or was itself stopped, does not."""

import os
import signal
import subprocess
import sys
import time

import pytest

from research import watchdog

PROGRAM = """
import sys, time
from research import watchdog

def stuck_in_a_collective():
  time.sleep(30)

with watchdog.Watchdog(0.5) as dog:
  for _ in range(int(sys.argv[1])):
    time.sleep(0.1)
    dog.beat()
  print("stepping", flush=True)
  if sys.argv[2] == "stuck":
    stuck_in_a_collective()
  time.sleep(0.2)
"""


def _start(*args):
  return subprocess.Popen([sys.executable, "-c", PROGRAM, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_stall_prints_every_stack_and_exits_4():
  child = _start("2", "stuck")
  child.stdout.readline()
  start = time.monotonic()
  _, stderr = child.communicate(timeout=10)
  assert child.returncode == 4 and time.monotonic() - start < 5.5
  assert "no step for 0.5 s" in stderr and "stuck_in_a_collective" in stderr and "_watch" in stderr


def test_a_run_that_steps_is_left_alone_also_after_it_was_stopped():
  child = _start("8", "steps")
  time.sleep(0.3)
  os.kill(child.pid, signal.SIGSTOP)
  time.sleep(1.0)
  os.kill(child.pid, signal.SIGCONT)
  _, stderr = child.communicate(timeout=10)
  assert child.returncode == 0 and stderr == ""


def test_a_longer_step_can_be_announced():
  with watchdog.Watchdog(0.2) as dog:
    dog.beat(allow=5.0)
    time.sleep(0.5)  # without the announcement this process would be gone


def test_a_negative_limit_is_refused():
  with pytest.raises(ValueError, match="stall_seconds=-1"):
    watchdog.Watchdog(-1)
