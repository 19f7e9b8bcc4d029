"""Batches computed ahead: the same, in order, and the thread ends."""

import threading
import time

import pytest

from research.data import prefetch


class Squares:

  def __init__(self, fail_at=None):
    self.fail_at = fail_at
    self.asked = []

  def __call__(self, step):
    self.asked.append(step)
    if step == self.fail_at:
      raise OSError(f"no data at {step}")
    return {"inputs": step**2}


def _alive():
  return [t for t in threading.enumerate() if t.name == "prefetch"]


def test_batches_come_in_order_from_the_step_asked_for():
  with prefetch.stream(Squares(), 7) as batches:
    assert [next(batches) for _ in range(50)] == [(s, {"inputs": s**2}) for s in range(7, 57)]


def test_it_works_ahead_but_not_far():
  task = Squares()
  with prefetch.stream(task):
    deadline = time.monotonic() + 5
    while len(task.asked) < 3 and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(0.05)
    assert len(task.asked) == 3  # two in the queue, one waiting for room


def test_an_exception_comes_in_place_of_its_batch():
  batches = prefetch.stream(Squares(fail_at=2))
  assert [next(batches)[0], next(batches)[0]] == [0, 1]
  with pytest.raises(OSError, match="no data at 2"):
    next(batches)
  assert not _alive()
  with pytest.raises(StopIteration):
    next(batches)


@pytest.mark.parametrize("taken", [0, 1, 10])
def test_closing_ends_the_thread(taken):
  batches = prefetch.stream(Squares())
  for _ in range(taken):
    next(batches)
  batches.close()
  batches.close()
  assert not _alive()
