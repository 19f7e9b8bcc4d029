"""What a person sees of a sweep: a bar over all its steps on a terminal, plain lines in a pipe."""

import sys
import threading
import time

import rich.console
import rich.progress

from research import exit_codes

WORDS = {exit_codes.DONE: "done", exit_codes.DIVERGED: "diverged", exit_codes.PREEMPTED: "stopped",
         exit_codes.CONFIG: "refused", exit_codes.STALLED: "stalled"}


class Board:
  """Counts steps and finished units. A context manager; its methods may be called from threads.

  Attributes:
    every_s: seconds between plain lines where there is no terminal.
  """

  def __init__(self, units: list[dict], every_s: float = 10.0):
    self.every_s = every_s
    self._units, self._lock = units, threading.Lock()
    self._steps, self._finished = [0] * len(units), 0
    self._weights = [max(1, len(unit["seeds"])) for unit in units]
    self._total = sum(w * unit["steps"] for w, unit in zip(self._weights, units))
    self._begun = self._said = time.monotonic()
    self._bar = None
    if sys.stdout.isatty():
      columns = ("{task.description}", rich.progress.BarColumn(), "{task.percentage:>3.0f} %",
                 rich.progress.TimeRemainingColumn())
      self._bar = rich.progress.Progress(*columns, console=rich.console.Console())
      self._task = self._bar.add_task(self._where(), total=self._total)

  def __enter__(self):
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *_):
    if self._bar:
      self._bar.stop()

  def say(self, text: str) -> None:
    """Prints one line, above the bar if there is one."""
    if self._bar:
      self._bar.console.print(text, markup=False, highlight=False)
    else:
      print(text, flush=True)

  def step(self, i: int, step: int) -> None:
    """Unit i has come to a step."""
    with self._lock:
      self._steps[i] = step
      now = sum(w * s for w, s in zip(self._weights, self._steps))
      if self._bar:
        self._bar.update(self._task, completed=now)
      elif time.monotonic() - self._said >= self.every_s:
        self._said = time.monotonic()
        left = (self._said - self._begun) * (self._total / max(now, 1) - 1)
        print(f"{self._where()}, {100 * now / self._total:.0f} % of all steps, about {left:.0f} s left", flush=True)

  def done(self, i: int, result: dict) -> None:
    """Unit i has ended, one way or another."""
    self.step(i, self._units[i]["steps"])
    with self._lock:
      self._finished += 1
      unit, word = self._units[i], WORDS.get(result["code"], "failed")
      seeds = ", ".join(map(str, unit["seeds"]))
      line = f"{self._where()}: {unit['arm']} seed {seeds} {word} in {result['seconds']:.1f} s"
      line += f": {result['why']}" if result["why"] else ""
      if self._bar:
        self._bar.update(self._task, description=self._where())
      self.say(line)

  def _where(self):
    return f"{self._finished}/{len(self._units)} units"
