"""A run that is killed or signalled at any instant goes on, and ends with the bits of the unbroken run.

The runs live in forks of one subprocess (saving_run.py), in locale C, without HOME, with a clock that jumps back.
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 10


ENV = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "LC_ALL": "C"}


def _drive(folder, trials, width=64):
  """Runs the trials after an unbroken run; returns (unbroken result, results, stderr)."""
  calm = {"signals": []}
  plan = [dict(trial, workdir=str(folder / str(n)), steps=STEPS, width=width)
          for n, trial in enumerate([calm, *trials])]
  done = subprocess.run(
      [sys.executable, "-W", "ignore", str(ROOT / "tests/research/saving_run.py"), json.dumps(plan)],
      env=ENV, capture_output=True, text=True, check=True, timeout=60 + 10 * len(trials))
  unbroken, *results = json.loads(done.stdout)
  return unbroken, results, done.stderr


def _instants(count, seed):
  """Instants spread over a run: after one of its reports and up to 60 ms later, but before the last saves."""
  draw = random.Random(seed)
  return [(draw.randint(1, STEPS - 4), 0.06 * draw.random()) for _ in range(count)]


def _last(result, word):
  return max((int(line.split()[1]) for line in result["seen"] if line.startswith(word)), default=0)


def _assert_same_bits(result, unbroken):
  assert result["resumed_code"] == 0
  assert result["final"] == unbroken["final"]
  assert result["lines"] == unbroken["lines"]
  assert not result["quarantine"]


def _kills(count):
  return [{"after": after, "signals": [[wait, "SIGKILL"]]} for after, wait in _instants(count, seed=0)]


def _assert_kills_lose_one_save(unbroken, trials, results):
  assert [line.get("step") for line in map(json.loads, unbroken["lines"])] == [None, *range(1, STEPS + 1)]
  for trial, result in zip(trials, results, strict=True):
    assert result["code"] == -9, trial
    _assert_same_bits(result, unbroken)
    # "saving s" is reported when save(s) has returned, so s - 1 must be on the disk.
    assert int(result["resumed"].split()[1]) >= _last(result, "saving") - 1, trial
  assert any(_last(result, "saving") > 2 for result in results)


def _assert_signals_save_and_exit(unbroken, trials, results):
  for trial, result in zip(trials, results, strict=True):
    assert result["code"] == 42 and result["seconds"] < 10, (trial, result["code"], result["seconds"])
    assert result["resumed"] == f"from {_last(result, 'stopped')}", trial
    _assert_same_bits(result, unbroken)


KILLS = _kills(6)  # `slow` has fifty, and twenty of the signals
SIGTERMS = [{"after": after, "signals": [[wait, "SIGTERM"]], "distributed": n == 2}
            for n, (after, wait) in enumerate(_instants(3, seed=1))]
SECOND = [{"after": 3, "slow_hash": 0.3, "signals": [[0, first], [0.1, again]]}
          for first, again in (("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT"))]
THIRD = [{"after": 3, "slow_hash": 0.5, "signals": [[0, "SIGINT"], [0.1, "SIGINT"], [0.1, "SIGINT"]]}]


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
  """All the trials of the fast tests in one subprocess: (unbroken run, results by kind, stderr)."""
  kinds = {"kills": KILLS, "sigterms": SIGTERMS, "second": SECOND, "third": THIRD}
  unbroken, results, stderr = _drive(tmp_path_factory.mktemp("runs"), sum(kinds.values(), []))
  results = iter(results)
  return unbroken, {kind: [next(results) for _ in trials] for kind, trials in kinds.items()}, stderr


def test_a_kill_at_any_instant_loses_at_most_the_save_in_progress(driven):
  unbroken, results, _ = driven
  _assert_kills_lose_one_save(unbroken, KILLS, results["kills"])


def test_sigterm_at_any_instant_saves_the_last_finished_step(driven):
  unbroken, results, _ = driven
  _assert_signals_save_and_exit(unbroken, SIGTERMS, results["sigterms"])


def test_a_second_signal_lets_the_save_complete(driven):
  unbroken, results, _ = driven
  _assert_signals_save_and_exit(unbroken, SECOND, results["second"])


def test_a_third_ctrl_c_leaves_at_once_and_the_last_complete_step_stays(driven):
  unbroken, results, _ = driven
  assert results["third"][0]["code"] == 1
  _assert_same_bits(results["third"][0], unbroken)


def test_the_terminal_shows_signals_and_nothing_of_orbax(driven):
  lines = [line for line in driven[2].splitlines() if line]
  assert all(line.startswith(("SIGTERM: ", "SIGINT: ")) for line in lines), driven[2]
  assert len(lines) == len(SIGTERMS) + 2 * len(SECOND) + 3 * len(THIRD)


@pytest.mark.slow
def test_fifty_kills_of_a_run_with_ten_megabytes(tmp_path):
  trials = _kills(50)
  unbroken, results, _ = _drive(tmp_path, trials, width=1600)
  _assert_kills_lose_one_save(unbroken, trials, results)


@pytest.mark.slow
@pytest.mark.parametrize("distributed", [False, True])
def test_twenty_sigterms(tmp_path, distributed):
  trials = [{"after": after, "signals": [[wait, "SIGTERM"]], "distributed": distributed}
            for after, wait in _instants(20, seed=2)]
  unbroken, results, _ = _drive(tmp_path, trials)
  _assert_signals_save_and_exit(unbroken, trials, results)


def _pair(workdir, steps, number=None):
  """Runs two processes, signals the second once a checkpoint is there; returns [(exit code, output lines)]."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  script = str(ROOT / "tests/research/saving_pair.py")
  pair = [subprocess.Popen([sys.executable, "-W", "ignore", script, str(workdir), str(port), str(index), str(steps)],
                           env=ENV, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for index in (0, 1)]
  while number and not list(workdir.glob("ckpt/*.json")) and pair[1].poll() is None:
    time.sleep(0.1)
  if number:
    pair[1].send_signal(number)
  outputs = [process.communicate(timeout=100)[0].splitlines() for process in pair]
  return [(process.returncode, lines) for process, lines in zip(pair, outputs)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_of_two_processes_stops_both_at_one_step(tmp_path, number):
  stopped = _pair(tmp_path / "cut", 400, number)
  at = {lines[-1] for _, lines in stopped}
  assert [code for code, _ in stopped] == [42, 42] and len(at) == 1
  step = int(at.pop().split()[1])
  assert 5 <= step < 400
  resumed = _pair(tmp_path / "cut", step + 10)
  unbroken = _pair(tmp_path / "whole", step + 10)
  assert [code for code, _ in resumed + unbroken] == [0] * 4
  assert f"from {step}" in resumed[0][1] and "from 0" in unbroken[0][1]
  assert len({lines[-1] for _, lines in resumed + unbroken}) == 1
  text = (tmp_path / "cut" / "metrics.jsonl").read_text()
  assert text == (tmp_path / "whole" / "metrics.jsonl").read_text() and text.count("\n") == step + 10
