"""Forks `research.run` again and again, and hurts it at chosen instants.

Importing jax takes longer than a toy run, so one process imports all that a run needs and forks
every run before any device exists. Usage: run_driver.py PLAN, a JSON list of commands that run in order:

    argv      of research.run
    after     wait for that many new lines of `lines`, a metrics file; then for `wait` seconds,
    signal    and send this. Without it the run ends by itself.
    beside    before the signal, this second command runs while the first is at work
    tear      before the run, this file loses its last 10 bytes
    env       of the run; a value of None unsets
    clock     seconds by which the wall clock jumps when the run starts to train

Prints a JSON list of {"code", "seconds" from the signal to the end, "out", "err"}.
"""

import gc
import json
import os
import pathlib
import signal
import sys
import tempfile
import time

from matplotlib import pyplot  # noqa: F401  with the next, the slow imports, done once
import research.runs  # noqa: F401
from research import run
from research import train


def fork(trial, out, err):
  """Returns the pid of a child that runs the command and exits with its code."""
  pid = os.fork()
  if pid:
    return pid
  code = 99
  try:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    for name, value in trial.get("env", {}).items():
      if value is None:
        os.environ.pop(name, None)
      else:
        os.environ[name] = value
    if "clock" in trial:
      real, begun = time.time, time.monotonic()
      time.time = lambda: real() + trial["clock"] * (time.monotonic() - begun > 0.5)
    if "signal" in trial:
      write = train._write  # a toy step takes a millisecond: too few to aim at
      train._write = lambda *args: (time.sleep(0.01), write(*args))
    code = run.main(trial["argv"])
  except BaseException as error:  # the child must never return into the driver
    os.write(2, f"child: {type(error).__name__}: {error}\n".encode())
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _lines(path):
  path = pathlib.Path(path)
  return path.read_bytes().count(b"\n") if path.exists() else 0


def hurt(trial):
  """Runs one command to its end, which may come from outside."""
  with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
    if "tear" in trial:
      os.truncate(trial["tear"], os.path.getsize(trial["tear"]) - 10)
    before = _lines(trial["lines"]) if "lines" in trial else 0
    pid, status, sent, beside = fork(trial, out, err), None, None, None
    while status is None:
      if "signal" in trial and sent is None and _lines(trial["lines"]) >= before + trial["after"]:
        beside = hurt({"argv": trial["beside"]}) if "beside" in trial else None
        time.sleep(trial.get("wait", 0))
        os.kill(pid, getattr(signal, trial["signal"]))
        sent = time.monotonic()
      done, ended = os.waitpid(pid, os.WNOHANG)
      status = ended if done else None
      time.sleep(0.005)
    out.seek(0), err.seek(0)
    return {"code": os.waitstatus_to_exitcode(status), "out": out.read(), "err": err.read(),
            "seconds": time.monotonic() - sent if sent else None, "beside": beside}


if __name__ == "__main__":
  # Looking for garbage among all that was imported takes a fifth of a child's time.
  gc.freeze()
  gc.set_threshold(100_000, 50, 100)
  print(json.dumps([hurt(trial) for trial in json.loads(sys.argv[1])]))
