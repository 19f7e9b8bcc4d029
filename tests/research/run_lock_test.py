"""One run per workdir, and no workdir held by the dead."""

import json
import os
import subprocess
import sys
import time

import pytest

from research import run_lock


def _write_lock(folder, silence=0.0, **owner):
  path = folder / "run.lock"
  path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "time": 0, "token": "x"} | owner))
  os.utime(path, (time.time() - silence,) * 2)


def _take(folder, heartbeat=10.0):
  with run_lock.RunLock(folder, heartbeat=heartbeat):
    return json.loads((folder / "run.lock").read_text())["pid"]


def test_a_second_run_is_told_who_is_there(tmp_path):
  with run_lock.RunLock(tmp_path):
    # A lock of this very process counts as left over by a restarted container, so the owner must be another pid.
    _write_lock(tmp_path, pid=os.getppid(), host=run_lock.socket.gethostname(), token=_token(tmp_path))
    with pytest.raises(run_lock.WorkdirBusy, match=f"used by pid {os.getppid()} on host .*--workdir") as refused:
      _take(tmp_path)
    assert "\n" not in str(refused.value)


def _token(folder):
  return json.loads((folder / "run.lock").read_text())["token"]


def test_a_released_lock_is_free(tmp_path):
  assert _take(tmp_path) == _take(tmp_path) == os.getpid()
  assert (tmp_path / "run.lock").read_bytes() == b""


def test_a_dead_pid_of_this_host_holds_nothing(tmp_path):
  child = subprocess.Popen(["true"])
  child.wait()
  _write_lock(tmp_path, pid=child.pid, host=run_lock.socket.gethostname())
  assert _take(tmp_path) == os.getpid()


@pytest.mark.parametrize("silence, free", [(0, False), (29, False), (31, True), (-3600, False)],
                         ids=["fresh", "two_missed", "three_missed", "clock_jumped_back"])
def test_another_host_loses_the_lock_after_three_silent_heartbeats(tmp_path, silence, free):
  _write_lock(tmp_path, silence=silence)
  if free:
    assert _take(tmp_path) == os.getpid()
  else:
    before = os.stat(tmp_path / "run.lock").st_mtime
    with pytest.raises(run_lock.WorkdirBusy, match="pid 1 on host 'elsewhere'"):
      _take(tmp_path)
    assert os.stat(tmp_path / "run.lock").st_mtime == pytest.approx(before)  # asking is not a sign of life


@pytest.mark.parametrize("text", ["", "{", "[" * 5000, '{"pid": "x", "host": 1}', '{"pid": 99999999999999999999, "host": "%s"}'])
def test_a_lock_of_no_form_is_free(tmp_path, text):
  (tmp_path / "run.lock").write_text(text.replace("%s", run_lock.socket.gethostname()))
  assert _take(tmp_path) == os.getpid()


def test_a_run_touches_its_lock(tmp_path):
  with run_lock.RunLock(tmp_path, heartbeat=0.1):
    os.utime(tmp_path / "run.lock", (0, 0))
    deadline = time.monotonic() + 5
    while os.stat(tmp_path / "run.lock").st_mtime == 0 and time.monotonic() < deadline:
      time.sleep(0.02)
    assert os.stat(tmp_path / "run.lock").st_mtime > 0


@pytest.mark.parametrize("harm", ["os.unlink(path)", "open(path, 'w').write('{\"pid\": 1, \"host\": \"h\", \"token\": \"t\"}')"],
                         ids=["removed", "taken"])
def test_a_run_that_lost_its_lock_leaves_with_one_line(tmp_path, harm):
  program = ("import os, sys, time; from research import run_lock; path = sys.argv[1] + '/run.lock'\n"
             f"with run_lock.RunLock(sys.argv[1], heartbeat=0.1):\n  {harm}\n  time.sleep(20)")
  done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=10)
  assert done.returncode == 1 and done.stderr.strip().startswith("lost ") and done.stderr.strip().count("\n") == 0
