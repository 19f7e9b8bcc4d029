"""One run per workdir: a lock file that names its owner and proves that it is alive.

`<workdir>/run.lock` holds pid, host, time and a random token, and a thread touches it. A lock is stale when its
process is gone from this host, or when it was not touched for three heartbeats. It is emptied on release, never
deleted: deleting a locked file is a race that two starting runs can both win.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import socket
import threading
import time

from research import exit_codes


class WorkdirBusy(Exception):
  """Another run writes to the workdir; the message names it."""


class RunLock:
  """Context manager that owns a workdir.

  A run whose lock was taken over (it was stopped for longer than three heartbeats) or whose workdir has vanished
  exits with code 1 and one line, rather than write beside its successor.

  Args:
    workdir: made if it is not there.
    heartbeat: seconds; another host may take over after three of them without a touch.

  Raises:
    WorkdirBusy: on entering, when a live run owns the workdir.
  """

  def __init__(self, workdir, *, heartbeat: float = 10.0):
    self._path = pathlib.Path(workdir) / "run.lock"
    self._heartbeat = heartbeat
    self._token = secrets.token_hex(8)
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._beat, name="run_lock", daemon=True)

  def __enter__(self):
    self._path.parent.mkdir(parents=True, exist_ok=True)
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time(), "token": self._token}
    with self._exclusive() as handle:
      self._refuse_if_alive(handle)
      os.ftruncate(handle, 0)
      os.pwrite(handle, json.dumps(mine).encode(), 0)
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._closed.set()
    self._thread.join()
    if self._owner().get("token") == self._token:
      os.truncate(self._path, 0)

  @contextlib.contextmanager
  def _exclusive(self):
    """The open lock file, held against other starting runs while it is read and rewritten."""
    handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
      with contextlib.suppress(OSError):  # some network file systems have no flock; the token still tells
        fcntl.flock(handle, fcntl.LOCK_EX)
      yield handle
    finally:
      os.close(handle)

  def _refuse_if_alive(self, handle):
    owner = self._owner()
    touched = os.fstat(handle).st_mtime
    # Both times come from the file server, so clocks of two hosts need not agree.
    os.utime(handle)
    silence = os.fstat(handle).st_mtime - touched
    if not owner or silence > 3 * self._heartbeat or (owner["host"] == socket.gethostname() and _gone(owner["pid"])):
      return
    os.utime(handle, (touched, touched))
    raise WorkdirBusy(f"{str(self._path.parent)!r} is used by pid {owner['pid']} on host {owner['host']!r}; "
                      "stop that run or choose another --workdir.")

  def _owner(self) -> dict:
    """What the lock says; {} if it is free, gone, or no lock of ours."""
    try:
      owner = json.loads(self._path.read_bytes()[:4096] or b"{}")
      return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) and "host" in owner else {}
    except (OSError, ValueError, RecursionError):
      return {}

  def _beat(self):
    # Five touches a heartbeat: one lost to a slow file server is not a missed beat.
    while not self._closed.wait(self._heartbeat / 5):
      if self._owner().get("token") != self._token:
        os.write(2, f"\nlost {str(self._path)!r} (removed, or taken over by another run): leaving.\n".encode())
        os._exit(exit_codes.CRASH)
      with contextlib.suppress(OSError):
        os.utime(self._path)


def _gone(pid):
  # Our own pid in someone else's lock: a restarted container numbers its processes from 1 again.
  if pid <= 0 or pid == os.getpid():
    return True
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  except OverflowError:
    return True
  except PermissionError:
    return False
  return False
