"""Sweeps from the command to the table: in this process, and over processes that are stopped and killed."""

import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from scipy import stats

from research import arms, compare, exit_codes, local, plan, settings, sweep, sweep_table, unit
from research import program as programs
from research.errors import ConfigError
from tests.research import toy

ROOT = pathlib.Path(__file__).parents[2]
CLAIMS = str(pathlib.Path(__file__).with_name("toy_claims.py"))
# From width 32 on, seeds are trained one by one on a CPU.
SHORT = ["--config.model.width=32", "--config.optim.steps=6", "--config.train.log_every=3", "--config.train.eval_every=0"]
VARIED = ["--vary=model.placement=pre,post", "--seeds=0:2", *SHORT]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": toy.FLAGS, "STRATA_CACHE": toy.CACHE,
       "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}


@pytest.fixture
def here(one_device, monkeypatch):
  """Units are trained in this process; returns the list of those that were."""
  trained = []

  def run(units, jobs, board):
    trained.extend(units)
    done = [unit.run_unit(one) for one in units]
    for i, result in enumerate(done):
      board.done(i, result)
    return done

  monkeypatch.setattr(local, "run", run)
  monkeypatch.setattr(settings, "prepare", lambda **_: None)
  return trained


def _main(*argv, file=toy.FILE):
  said, errors = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
    code = sweep.main([f"--config={file}", *map(str, argv)])
  return code, said.getvalue(), errors.getvalue()


def _finals(folder):
  """Returns {arm/seed: (bytes, time of the last change)} of all finished runs."""
  return {str(path.parent.relative_to(folder / "arms")): (path.read_bytes(), path.stat().st_mtime_ns)
          for path in sorted(folder.glob("arms/*/seed_*/final.json"))}


def test_a_sweep_compares_and_its_second_call_trains_nothing(tmp_path, here):
  code, said, errors = _main(f"--workdir={tmp_path}", *VARIED)
  first = _finals(tmp_path)
  assert (code, errors) == (0, "") and len(first) == len(here) == 4
  assert "4/4 units" in said and "minus placement-pre" in (tmp_path / "summary.md").read_text()
  assert _main(f"--workdir={tmp_path}", *VARIED)[0] == 0 and len(here) == 4 and _finals(tmp_path) == first
  more = [argument.replace("0:2", "0:3") for argument in VARIED]
  assert _main(f"--workdir={tmp_path}", *more)[0] == 0
  assert [one["seeds"] for one in here[4:]] == [[2], [2]] and _finals(tmp_path).items() > first.items()
  code, _, errors = _main(f"--workdir={tmp_path}", *VARIED, "--config.optim.lr=0.5")
  assert code == 2 and "holds another config" in errors and len(here) == 6
  code, _, errors = _main(f"--workdir={tmp_path}", *VARIED, "--metric=eval/los")
  assert code == 2 and "did you mean 'eval/loss'?" in errors


def test_a_dry_run_writes_nothing(tmp_path, here, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, said, _ = _main("--dry_run", *VARIED, "--fresh")
  assert code == 0 and not list(tmp_path.iterdir()) and not here
  assert "placement-post: model.placement=post" in said and "2 arms, 4 runs, 4 units left" in said


@pytest.mark.parametrize("argv, says", [
    (["--vary=a"], "--vary='a' must be KEY=VALUE"), (["--vary=optim.lrr=1,2"], "did you mean 'lr'?"),
    (["--vary=optim.lr=1,1.0"], "are the same config"), ([], "has no arms()"), (["--seeds=2:1"], "--seeds='2:1'"),
    (["--jobs=-1", *VARIED], "--jobs=-1 must be at least 0"), (["--job=1"], "did you mean '--jobs'?"),
    (["--against=placement-prae", *VARIED], "did you mean 'placement-pre'?"),
    (["--match=parameter", *VARIED], "--match='parameter' must be one of"), (["--jobs=two"], "--jobs")])
def test_a_slip_is_one_line_and_exit_2(tmp_path, here, argv, says):
  code, _, errors = _main(f"--workdir={tmp_path / 'sweep'}", *argv)
  assert code == 2 and says in errors and errors.startswith("error: ") and errors.count("\n") == 1
  assert not here and not (tmp_path / "sweep").exists()


def test_an_arm_that_fails_loses_no_other(tmp_path, here):
  argv = [f"--workdir={tmp_path}", "--vary=optim.lr=0.01,0.5,0.02", "--seeds=0:1"]
  code, _, errors = _main(*argv, file=CLAIMS)
  assert code == exit_codes.CRASH and set(_finals(tmp_path)) == {"lr-0.01/seed_0", "lr-0.02/seed_0"}
  assert "failed: lr-0.5 seed 0: ArithmeticError: on purpose (see " in errors and "Traceback" not in errors
  assert "Traceback" in (tmp_path / "arms" / "lr-0.5" / "log-seed_0.txt").read_text()
  first = _finals(tmp_path)
  assert _main(*argv, file=CLAIMS)[0] == exit_codes.CRASH and _finals(tmp_path) == first
  assert [one["arm"] for one in here] == ["lr-0.01", "lr-0.5", "lr-0.02", "lr-0.5"]


def test_an_arm_that_cannot_run_is_exit_2_and_loses_no_other(tmp_path, here):
  code, _, errors = _main(f"--workdir={tmp_path}", "--vary=model.mixer.heads=2,0", "--seeds=0:1", *SHORT)
  assert code == exit_codes.CONFIG and set(_finals(tmp_path)) == {"heads-2/seed_0"} and "failed: heads-0" in errors


def test_an_arm_that_diverges_is_recorded_and_not_repeated(tmp_path, here):
  argv = [f"--workdir={tmp_path}", "--vary=optim.lr=1e-2,1e30", *SHORT, "--seeds=0:2", "--config.optim.steps=12"]
  code, said, errors = _main(*argv)
  assert (code, errors) == (0, "") and len(_finals(tmp_path)) == 2 and "diverged in" in said
  assert "lr-1e30: seed 0 diverged, seed 1 diverged" in said and "better" not in said
  assert len(list(tmp_path.glob("arms/lr-1e30/seed_*/diverged.json"))) == 2
  assert _main(*argv)[0] == 0 and len(here) == 4


def test_a_tiny_model_is_a_group_that_ends_as_seeds(tmp_path, here, monkeypatch):
  monkeypatch.setattr(unit.many, "faster", lambda config, seeds, say: programs.make(config, seeds=len(seeds)))
  argv = [f"--workdir={tmp_path}", "--vary=model.placement=pre", "--seeds=0:2", "--jobs=1", *SHORT[1:]]
  assert _main(*argv)[0] == 0 and len(_finals(tmp_path)) == 2
  assert [one["seeds"] for one in here] == [[0, 1]]
  assert json.loads((tmp_path / "arms/placement-pre/seeds_0_2/seeds.json").read_text()) == {"seeds": [0, 1], "vmapped": True}
  assert (tmp_path / "arms/placement-pre/model_table.csv").is_file()
  assert _main(*argv)[0] == 0 and len(here) == 1


def test_arms_of_a_seed_begin_with_the_same_draws_and_data():
  pre, post = (programs.make(arm.config) for arm in arms.make(
      toy.FILE, {"model.width": 32}, {"pre": {}, "post": {"model.channel.hidden": 24}}))
  same, seen = 0, jax.device_get([p.init(1) for p in (pre, post)])
  for path, leaf in jax.tree_util.tree_leaves_with_path(seen[0].params):
    other = dict(jax.tree_util.tree_leaves_with_path(seen[1].params))[path]
    if leaf.shape == other.shape:
      np.testing.assert_array_equal(leaf, other)
      same += np.ptp(leaf) > 0
  assert same >= 3
  np.testing.assert_array_equal(pre.task.batch("train", seen[0].cursor)["inputs"],
                                post.task.batch("train", seen[1].cursor)["inputs"])


def test_the_table_says_better_only_where_the_interval_and_the_number_of_arms_allow():
  draw = np.random.default_rng(0)
  for _ in range(40):
    numbers = {arm: dict(enumerate(draw.standard_normal(4) + draw.normal(0, 2))) for arm in "abcd"}
    found = compare.differences(numbers, "a", compare.direction("eval/loss"))
    assert "a" not in found
    for arm, row in found.items():
      values = np.asarray([numbers[arm][s] - numbers["a"][s] for s in range(4)])
      np.testing.assert_allclose(row.mean, np.mean(values), rtol=1e-9)
      crosses = row.interval[0] <= 0 <= row.interval[1]
      assert row.p >= stats.ttest_1samp(values, 0).pvalue - 1e-12 and not (crosses and row.word != "no difference seen")
      assert row.word == "no difference seen" or (row.word == "better") == (row.mean < 0)


def test_the_table_leaves_out_what_is_not_finite_and_says_so():
  values = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 0.5, 1: np.inf, 2: 2.0}, "c": {}}
  heads, rows, notes = sweep_table.table(values, {"c": {0: "diverged"}}, "eval/loss", "a")
  assert [row[:3] for row in rows] == [["a", "3", "2.0000"], ["b", "2", "1.2500"], ["c", "0", "-"]]
  assert all(len(row) == len(heads) for row in rows) and rows[0][-1] == "reference"
  assert "b: seed 1 eval/loss=inf" in notes and "c: seed 0 diverged" in notes


def test_parts_of_a_sweep_make_the_whole_and_meet_nowhere():
  whole = plan.Plan("toy", {}, [], {"a": (0, 1, 2, 3, 4), "b": (0, 1, 2)}, pathlib.Path("x"))
  pairs = lambda p: [(arm, seed) for arm, seeds in p.seeds.items() for seed in seeds]
  for n in (1, 2, 3, 8, 20):
    parts = [pairs(plan.share(whole, f"{i}/{n}")) for i in range(1, n + 1)]
    assert sorted(sum(parts, [])) == sorted(pairs(whole)) and max(map(len, parts)) - min(map(len, parts)) <= 1
  for wrong in ("0/2", "3/2", "1", "a/b", "1/0"):
    with pytest.raises(ConfigError, match="--units="):
      plan.share(whole, wrong)


@pytest.mark.parametrize("jobs, units", [(0, 1), (0, 100), (1, 5), (2, 5), (3, 2), (64, 100)])
def test_the_cores_are_shared_out_evenly(jobs, units):
  cores, found = sorted(os.sched_getaffinity(0)), local.shares(jobs, units)
  assert len(found) == min(jobs or len(cores), units)
  if len(found) <= len(cores):
    assert sorted(sum(found, [])) == cores and max(map(len, found)) - min(map(len, found)) <= 1
  else:
    assert not any(found)


# --- With processes.


def _command(folder, *argv):
  return [sys.executable, "-W", "ignore", "-m", "research.sweep", f"--config={toy.FILE}", f"--workdir={folder}", *argv]


def _children(pid):
  return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _gone(pids, seconds=30):
  """Whether the processes are gone before the time is over."""
  deadline = time.monotonic() + seconds
  alive = lambda pid: pathlib.Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
  while any(map(alive, pids)) and time.monotonic() < deadline:
    time.sleep(0.1)
  return not any(map(alive, pids))


def _alone(folder, placement, seed):
  """Trains what one unit trains by research.run, on one core; returns its final.json."""
  core = min(os.sched_getaffinity(0))
  program = f"import os, sys; os.sched_setaffinity(0, {{{core}}})\nfrom research import run\nsys.exit(run.main(sys.argv[1:]))"
  argv = [f"--config={toy.FILE}", f"--workdir={folder}", f"--config.model.placement={placement}", f"--seeds={seed}", *SHORT]
  done = subprocess.run([sys.executable, "-W", "ignore", "-c", program, *argv], cwd=ROOT, env=ENV, capture_output=True, text=True,
                        timeout=120)
  assert done.returncode == 0, done.stderr
  return json.loads((folder / f"seed_{seed}" / "final.json").read_text())


def test_units_in_pinned_processes_are_the_runs_of_one_core_bit_for_bit(tmp_path):
  one_seed = [argument.replace("0:2", "1:2") for argument in VARIED]
  child = subprocess.Popen(_command(tmp_path / "sweep", *one_seed), cwd=ROOT, env=ENV, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
  workers = set()
  while child.poll() is None:
    with contextlib.suppress(OSError):
      workers |= set(_children(child.pid))
    time.sleep(0.1)
  said, errors = child.communicate()
  assert child.returncode == 0 and not errors, errors
  assert "2 arms" not in said and "2/2 units" in said and _gone(workers)
  units = {arm: [json.loads(line) for line in (tmp_path / "sweep/arms" / arm / "units.jsonl").read_text().splitlines()]
           for arm in ("placement-pre", "placement-post")}
  assert all([u["seeds"] for u in of_arm] == [[1]] for of_arm in units.values())
  alone = _alone(tmp_path / "alone", "post", 1)
  assert json.loads((tmp_path / "sweep/arms/placement-post/seed_1/final.json").read_text()) == alone


LONG = {"model.width": "32", "optim.steps": "60", "train.log_every": "1", "train.eval_every": "0", "train.save_every": "5"}


def _worker():
  core = min(os.sched_getaffinity(0))
  return subprocess.Popen([sys.executable, "-W", "ignore", "-m", "research.worker", str(core)], cwd=ROOT, env=ENV, text=True,
                          bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _send(worker, folder, seed, until=None):
  """Gives the worker a unit; returns its first event that is its end or has come to a step."""
  asked = {"config": toy.FILE, "overrides": LONG, "arm": "a", "seeds": [seed], "directory": str(folder / "arms/a"),
           "steps": 60, "group": False}
  worker.stdin.write(json.dumps(asked) + "\n")
  return next(event for event in map(json.loads, worker.stdout) if "done" in event or until and event["step"] >= until)


def test_a_killed_unit_goes_on_and_a_worker_leaves_with_its_sweep(tmp_path):
  at = tmp_path / "sweep"
  with _worker() as worker:
    assert _send(worker, at, 0)["done"]["code"] == 0
    first = _finals(at)
    assert _send(worker, at, 1, until=20) == {"step": 20, "of": 60}
    worker.kill()
  assert _finals(at) == first
  with _worker() as worker:
    assert _send(worker, at, 1)["done"]["code"] == 0
    assert _send(worker, tmp_path / "unbroken", 1)["done"]["code"] == 0
    assert _send(worker, at, 2, until=20) == {"step": 20, "of": 60}
    worker.stdin.close()  # what a killed sweep leaves behind
    assert worker.wait(timeout=30) == 0
  assert "continuing from step" in (at / "arms/a/log-seed_1.txt").read_text()
  second = _finals(at)
  assert set(second) == {"a/seed_0", "a/seed_1"} and second["a/seed_0"] == first["a/seed_0"]
  assert second["a/seed_1"][0] == _finals(tmp_path / "unbroken")["a/seed_1"][0]
  assert "stopped at step" in (at / "arms/a/log-seed_2.txt").read_text()
  codes = [json.loads(line)["code"] for line in (at / "arms/a/units.jsonl").read_text().splitlines()]
  assert codes == [0, 0, exit_codes.PREEMPTED]


def _cut(folder, number, after):
  """Runs the sweep until so many runs are finished and another is at work, then sends the signal; returns (code, workers)."""
  long = [f"--config.{key}={value}" for key, value in LONG.items() if key != "optim.steps"]
  child = subprocess.Popen(_command(folder, "--vary=model.placement=pre,post", "--seeds=0:3", *long, "--config.optim.steps=300",
                                     "--config.train.save_every=50"),
                           cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  at_work = lambda: any(path.stat().st_size for path in folder.glob("arms/*/seed_*/run.lock"))
  while number and (len(_finals(folder)) < after or not at_work()) and child.poll() is None:
    time.sleep(0.05)
  workers = _children(child.pid) if child.poll() is None else []
  if number:
    child.send_signal(number)
  return child.wait(timeout=300), workers


@pytest.mark.slow
def test_a_sweep_that_is_stopped_and_killed_goes_on_and_repeats_nothing(tmp_path):
  at, kept = tmp_path / "sweep", {}
  for number, after, code in ((signal.SIGTERM, 0, 42), (signal.SIGKILL, 1, -9), (signal.SIGTERM, 3, 42), (None, 6, 0)):
    found, workers = _cut(at, number, after)
    assert found == code and _gone(workers), (number, found)
    finals = _finals(at)
    assert finals.items() >= kept.items() and len(finals) >= after
    kept = finals
  assert len(kept) == 6
  found, _ = _cut(tmp_path / "unbroken", None, 6)
  assert found == 0 and {run: text for run, (text, _) in _finals(tmp_path / "unbroken").items()} == {
      run: text for run, (text, _) in kept.items()}
  units = [json.loads(line) for path in at.glob("arms/*/units.jsonl") for line in path.read_text().splitlines()]
  assert sorted(u["seeds"][0] for u in units if u["code"] == 0) == [0, 0, 1, 1, 2, 2]


@pytest.mark.slow
def test_a_signal_before_anything_trains_stops_the_sweep(tmp_path):
  for wait in (1.0, 3.0, 5.0):
    child = subprocess.Popen(_command(tmp_path / str(wait), *VARIED, "--config.optim.steps=100000"), cwd=ROOT, env=ENV,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert "strata: sweep" in child.stdout.readline()
    time.sleep(wait)
    workers = _children(child.pid)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode in (42, -signal.SIGTERM) and _gone(workers)
