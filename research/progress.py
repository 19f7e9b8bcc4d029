"""What a person sees of a run: a bar on a terminal, plain lines in a pipe."""

import sys
import time

import rich.console
import rich.progress


class Progress:
  """Shows steps, loss, tokens per second and the time left. A context manager.

  Attributes:
    total: steps of the run.
    every_s: seconds between plain lines where there is no terminal.
  """

  def __init__(self, total: int, start: int = 0, every_s: float = 10.0):
    self.total, self.every_s = total, every_s
    self._first, self._said = None, -1e9
    self._bar = None
    if sys.stdout.isatty():
      columns = ("{task.description}", rich.progress.BarColumn(),
                 "{task.completed}/{task.total}", "{task.fields[note]}",
                 rich.progress.TimeRemainingColumn())
      self._bar = rich.progress.Progress(*columns, console=rich.console.Console())
      self._task = self._bar.add_task("training", total=total, completed=start, note="")

  def __enter__(self):
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *exc):
    if self._bar:
      self._bar.stop()

  def say(self, text: str) -> None:
    """Prints one line, above the bar if there is one."""
    if self._bar:
      self._bar.console.print(text, markup=False, highlight=False)
    else:
      print(text, flush=True)

  def update(self, step: int, loss: float, tokens_per_s: float) -> None:
    """Shows where the run is; plain lines come at the first call, the last, and every_s."""
    note = f"loss {loss:.4f}  {tokens_per_s:,.0f} tokens/s"
    if self._bar:
      self._bar.update(self._task, completed=step, note=note)
      return
    now = time.monotonic()
    if now - self._said >= self.every_s or step >= self.total:
      self._said = now
      print(f"step {step}/{self.total}  {note}{self._left(step, now)}", flush=True)

  def _left(self, step, now) -> str:
    """Returns the time left at the pace since the first update; that one has compilation in it."""
    if self._first is None:
      self._first = step, now
      return ""
    (first, begun) = self._first
    return f"  {(now - begun) / max(1, step - first) * (self.total - step):.0f} s left"
