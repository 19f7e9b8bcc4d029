"""Computes batches ahead in one background thread.

The batch of a step is a pure function of the step, so nothing here is state that
a checkpoint would need: a run that resumes at step n opens `stream` at n.
"""

from collections.abc import Callable
import queue
import threading

_AHEAD = 2  # batches computed before they are asked for


class stream:
  """Iterator of (step, batch) from `start_step` on, in order, without end.

  Use it in a `with` block, or call `close`. An exception in `read(step)` is raised
  where its batch would have been returned.
  """

  def __init__(self, read: Callable[[int], object], start_step: int = 0):
    self._queue = queue.Queue(_AHEAD)
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._fill, args=(read, start_step),
                                    name="prefetch", daemon=True)
    self._thread.start()

  def _fill(self, read, step):
    while not self._closed.is_set():
      try:
        item = (step, read(step)), None
      except BaseException as error:  # it belongs to whoever waits for this batch
        item = None, error
      self._queue.put(item)
      if item[1] is not None:
        return
      step += 1

  def __iter__(self):
    return self

  def __next__(self):
    if self._closed.is_set():
      raise StopIteration
    item, error = self._queue.get()
    if error is not None:
      self.close()
      raise error
    return item

  def close(self) -> None:
    """Stops the thread and waits until it is gone."""
    self._closed.set()
    while self._thread.is_alive():
      try:  # a full queue would keep the thread in `put`
        self._queue.get(timeout=0.01)
      except queue.Empty:
        continue

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()
