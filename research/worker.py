"""A process that trains units of a sweep, one after the other: `python -m research.worker CORE,CORE`.

A unit comes as one JSON line on stdin; events go as JSON lines to stdout: {"step", "of"} while it
trains, {"done": {"code", "seconds", "why"}} at its end. Pinned to one core, XLA works in one thread:
one such process per core does more than one process over all of them. When stdin ends, because the
sweep ended or was killed, the unit at work saves and the process leaves.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading

from research import exit_codes, settings


class _Told:
  """The progress of a run as events on a stream; a context manager like research/progress.py."""

  def __init__(self, tell, total):
    self._tell, self._total = tell, total

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def say(self, text: str) -> None:
    print(text, flush=True)

  def update(self, step: int, loss: float, tokens_per_s: float) -> None:
    self._tell({"step": step, "of": self._total})


def main() -> int:
  """Works until stdin ends."""
  cores = {int(core) for core in sys.argv[1].split(",")} if sys.argv[1:] and sys.argv[1] else set()
  if cores and sys.platform == "linux":
    os.sched_setaffinity(0, cores)
  events = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # what libraries print must not look like an event
  settings.prepare()
  from research import unit as units

  def tell(event):
    with contextlib.suppress(BrokenPipeError, ValueError):
      events.write(json.dumps(event) + "\n")

  lines, busy = queue.Queue(), threading.Event()
  threading.Thread(target=_read, args=(lines, busy), daemon=True).start()
  while (line := lines.get()) is not None:
    asked = json.loads(line)
    busy.set()
    done = units.run_unit(asked, _Told(tell, asked["steps"]))
    busy.clear()
    tell({"done": done})
    if done["code"] == exit_codes.PREEMPTED:
      break
  return exit_codes.DONE


def _read(lines, busy):
  for line in sys.stdin:
    lines.put(line)
  lines.put(None)
  if busy.is_set():
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
  sys.exit(main())
