"""Units of a sweep on this machine: a few processes, each pinned to its share of the cores.

Measured 2026-11-21, see research/results: one single-threaded process per core against one run after
the other on all cores.
"""

import concurrent.futures
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading

from research import exit_codes

TRIES = 2  # a process that dies (out of memory, say) takes its unit down this often
STOPPED = {"code": exit_codes.PREEMPTED, "seconds": 0.0, "why": "stopped"}


def shares(jobs: int, units: int) -> list[list[int]]:
  """Returns the cores of each process: as even as possible, no more processes than units.

  Args:
    jobs: processes wanted, 0 for one per core.
    units: how many there are to do.
  """
  cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))
  n = max(1, min(jobs or len(cores), units))
  if n > len(cores):
    return [[] for _ in range(n)]  # more processes than cores: the system shares them out
  return [cores[i * len(cores) // n:(i + 1) * len(cores) // n] for i in range(n)]


def accelerator() -> bool:
  """Whether the processes that train will find one. Asked of a process of its own: whoever looks, holds it."""
  if os.environ.get("JAX_PLATFORMS") == "cpu" or not importlib.util.find_spec("jax_plugins") and not (
      importlib.util.find_spec("libtpu")):
    return False
  asked = subprocess.run([sys.executable, "-c", "import jax; print(jax.default_backend())"], capture_output=True,
                         text=True, check=False)
  return asked.returncode == 0 and asked.stdout.split()[-1:] != ["cpu"]


class _Process:
  """One worker process; started when it is first needed, and again when it died."""

  def __init__(self, cores):
    self._cores, self._child = cores, None

  def run(self, unit, heard, stopping) -> dict:
    """Returns what the unit came to; `heard(step)` is called while it trains."""
    for _ in range(TRIES):
      if stopping.is_set():
        return STOPPED
      if self._child is None:
        # A session of its own: Ctrl-C reaches the sweep, which passes it on once.
        self._child = subprocess.Popen(
            [sys.executable, "-m", "research.worker", ",".join(map(str, self._cores))], text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        if stopping.is_set():  # `signal` came while there was no child to pass it to
          self.signal(signal.SIGTERM)
      try:
        self._child.stdin.write(json.dumps(unit) + "\n")
        for line in self._child.stdout:
          event = json.loads(line)
          if "done" in event:
            return event["done"]
          heard(event["step"])
      except BrokenPipeError:
        pass
      code = self._child.wait()
      self._child = None
    # A signal that finds a process before it trains has nothing to save, and ends it.
    return STOPPED if stopping.is_set() else {
        "code": exit_codes.CRASH, "seconds": 0.0, "why": f"its process died {TRIES} times, last with code {code}"}

  def signal(self, number):
    if self._child is not None and self._child.poll() is None:
      self._child.send_signal(number)

  def close(self):
    if self._child is not None:
      self._child.stdin.close()
      self._child.wait()
      self._child.stdout.close()


def run(units: list[dict], jobs: int, board) -> list[dict]:
  """Trains all units; returns their results in order. Ctrl-C and SIGTERM save what is at work first.

  Args:
    units: see research/unit.py.
    jobs: processes, 0 for one per core.
    board: is told of progress: research/board.py.
  """
  processes = [_Process(cores) for cores in shares(jobs, len(units))]
  idle, stopping = queue.SimpleQueue(), threading.Event()
  for process in processes:
    idle.put(process)

  def one(i):
    process = idle.get()
    try:
      done = process.run(units[i], lambda step: board.step(i, step), stopping)
      if done is not STOPPED:
        board.done(i, done)
      return done
    finally:
      idle.put(process)

  def stop(number, _):
    if not stopping.is_set():
      os.write(2, b"\nstopping: every unit at work saves first; the same command continues.\n")
    stopping.set()
    for process in processes:
      process.signal(signal.SIGTERM)

  before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
      return list(pool.map(one, range(len(units))))
  finally:
    for process in processes:
      process.close()
    for number, handler in before.items():
      signal.signal(number, handler)
