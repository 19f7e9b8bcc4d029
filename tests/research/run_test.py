"""Whole runs, stopped, killed and started again: rows 1, 2, 3, 25, 27 and 28 of the fault table.

All runs are forks of one subprocess (run_driver.py), in locale C, without HOME or a terminal.
"""

import json
import os
import pathlib
import random
import subprocess
import sys

import pytest

from research import manifest
from research import program as programs
from research.checkpoint import Checkpoints, params_sha256
from research.metrics import deterministic_lines, read
from tests.research import toy

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 60
SLURM = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1",
         "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def _drive(plan, timeout=300):
  done = subprocess.run(
      [sys.executable, "-W", "ignore", "-m", "tests.research.run_driver", json.dumps(plan)], cwd=ROOT,
      env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "LC_ALL": "C",
           "XLA_FLAGS": toy.FLAGS, "STRATA_CACHE": toy.CACHE, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"},
      capture_output=True, text=True, timeout=timeout)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def _argv(folder, *more):
  return [f"--config={toy.FILE}", f"--workdir={folder}", "--config.train.log_every=1",
          f"--config.optim.steps={STEPS}", *more]


def _cut(folder, name, instants, *more, **trial):
  """Returns commands: the same run, sent signal `name` after so many steps each time, then whole."""
  argv, lines = _argv(folder, *more), f"{folder}/metrics.jsonl"
  cuts = [dict(argv=argv, lines=lines, after=after, wait=wait, signal=name, **trial)
          for after, wait in instants]
  return [*cuts, dict(argv=argv)]


def _instants(count, seed):
  draw = random.Random(seed)
  return [(draw.randint(2, 14), 0.03 * draw.random()) for _ in range(count)]


def _assert_same_run(folder, unbroken):
  final, want = (json.loads((path / "final.json").read_text()) for path in (folder, unbroken))
  assert final == want
  assert deterministic_lines(folder / "metrics.jsonl") == deterministic_lines(unbroken / "metrics.jsonl")
  steps = [r["step"] for r in read(folder / "metrics.jsonl") if "loss" in r]
  assert steps == list(range(1, STEPS + 1))


def _leaves(folder):
  """Every leaf of the newest checkpoint, optimizer, keys and sums included."""
  program = programs.make(toy.config(train__log_every=1, optim__steps=STEPS))
  identity = manifest.read(folder / "ckpt", STEPS)["identity"]
  saved = Checkpoints(folder / "ckpt", identity=identity, read_only=True)
  step, state = saved.restore(program.abstract)
  saved.close()
  assert step == STEPS
  return params_sha256(state)


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
  """(folder of the runs, results by name) of all commands below, in one subprocess."""
  at = tmp_path_factory.mktemp("runs")
  long = _argv(at / "busy", "--config.optim.steps=1000000", "--config.train.save_every=1000000")
  kills = _cut(at / "kill", "SIGKILL", _instants(2, seed=2), "--config.train.save_every=1")
  kills[1]["tear"] = f"{at}/kill/metrics.jsonl"
  terms = _cut(at / "term", "SIGTERM", _instants(3, seed=1))
  terms[1] |= dict(argv=[*terms[1]["argv"], "--distributed=auto"], env=SLURM)
  plans = {
      "unbroken": [dict(argv=_argv(at / "unbroken"))],
      "term": terms,
      "kill": kills,
      "odd": [dict(argv=_argv(at / "odd"), clock=-3600, env={"STRATA_CACHE": None, "TMPDIR": str(at)})],
      "again": [dict(argv=_argv(at / "unbroken")), dict(argv=_argv(at / "unbroken", "--eval_only"))],
      "dtype": [dict(argv=_argv(at / "unbroken", "--config.model.dtype=bfloat16"))],
      "nowhere": [dict(argv=_argv("/dev/null/run"))],
      "busy": [dict(argv=long, beside=long, lines=f"{at}/busy/metrics.jsonl", after=5, signal="SIGTERM")],
  }
  results = iter(_drive(sum(plans.values(), [])))
  return at, {name: [next(results) for _ in plan] for name, plan in plans.items()}


def test_a_run_cut_three_times_once_of_them_under_slurm_is_the_unbroken_run(driven):
  at, results = driven
  assert [r["code"] for r in results["term"]] == [42, 42, 42, 0], results["term"]
  assert all(r["seconds"] < 10 for r in results["term"][:3])
  assert all("continuing from step" in r["out"] for r in results["term"][1:])
  _assert_same_run(at / "term", at / "unbroken")
  assert _leaves(at / "term") == _leaves(at / "unbroken")


def test_a_killed_run_loses_at_most_the_save_in_progress(driven):
  at, results = driven
  assert [r["code"] for r in results["kill"]] == [-9, -9, 0], results["kill"]
  _assert_same_run(at / "kill", at / "unbroken")
  assert not (at / "kill" / "ckpt" / "quarantine").exists()


def test_a_run_needs_no_home_no_locale_no_terminal_and_no_honest_clock(driven):
  at, results = driven
  assert results["odd"][0]["code"] == 0, results["odd"]
  _assert_same_run(at / "odd", at / "unbroken")


def test_a_finished_run_says_so(driven):
  again = driven[1]["again"][0]
  assert again["code"] == 0 and "finished already" in again["out"] and "--fresh" in again["out"]


def test_eval_only_finds_the_last_evaluation_again(driven):
  at, results = driven
  final = json.loads((at / "unbroken" / "final.json").read_text())
  assert results["again"][1]["code"] == 0
  assert f"step {STEPS} eval/loss {final['eval/loss']:.6f}" in results["again"][1]["out"]


def test_another_dtype_in_the_same_workdir_is_refused_naming_both(driven):
  refused = driven[1]["dtype"][0]
  assert refused["code"] == 2 and refused["err"].count("\n") == 1
  assert "config.model.dtype is 'float32' there and 'bfloat16' here" in refused["err"]


def test_a_workdir_that_cannot_be_written_is_one_line(driven):
  refused = driven[1]["nowhere"][0]
  assert refused["code"] == 1 and refused["err"].startswith("error: ") and refused["err"].count("\n") == 1


def test_a_second_run_in_a_workdir_is_refused_and_the_first_goes_on(driven):
  busy = driven[1]["busy"][0]
  assert busy["beside"]["code"] == 1 and "is used by pid" in busy["beside"]["err"]
  assert busy["code"] == 42


def test_errors_come_without_tracebacks(driven):
  for name, results in driven[1].items():
    for result in results:
      assert "Traceback" not in result["out"] + result["err"], name


@pytest.mark.slow
def test_twenty_seeds_cut_three_times(tmp_path):
  for seed in range(20):
    more, at = f"--config.seed={seed}", tmp_path / str(seed)
    plan = [dict(argv=_argv(at / "unbroken", more)),
            *_cut(at / "term", "SIGTERM", _instants(3, seed), more)]
    assert [r["code"] for r in _drive(plan)] == [0, 42, 42, 42, 0]
    _assert_same_run(at / "term", at / "unbroken")


@pytest.mark.slow
@pytest.mark.parametrize("signal, code, more, trial", [
    ("SIGKILL", -9, ["--config.train.save_every=1"], {}), ("SIGTERM", 42, [], {}),
    ("SIGTERM", 42, ["--distributed=auto"], {"env": SLURM})], ids=["kill", "term", "term_distributed"])
def test_ten_instants(tmp_path, signal, code, more, trial):
  plan = [dict(argv=_argv(tmp_path / "unbroken"))]
  for n, instant in enumerate(_instants(10, seed=5)):
    plan += _cut(tmp_path / str(n), signal, [instant], *more, **trial)[:1]
    plan += [dict(argv=_argv(tmp_path / str(n), *(m for m in more if "distributed" not in m)))]
  codes = [r["code"] for r in _drive(plan, timeout=900)]
  assert codes == [0, *[code, 0] * 10]
  for n in range(10):
    _assert_same_run(tmp_path / str(n), tmp_path / "unbroken")


@pytest.mark.slow
def test_two_thousand_steps_need_no_more_memory_and_no_compilation(tmp_path):
  """Row 26: resident size, read from /proc, after step 200 and at the end, before the evaluation."""
  program = ("import sys, re; from research import train, run\n"
             "rss = lambda: int(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
             "seen, write = {}, train._write\n"
             "def noted(files, records, dashboard):\n"
             "  for record in records[:1]:\n    seen.setdefault(record['step'], rss())\n"
             "  write(files, records, dashboard)\n"
             "train._write = noted\n"
             "code = run.main(sys.argv[1:])\n"
             "print('GREW', seen[2000] - seen[200])\nsys.exit(code)")
  argv = [f"--config={toy.FILE}", f"--workdir={tmp_path}", "--config.optim.steps=2000",
          "--config.train.eval_every=0", "--config.train.save_every=100"]
  done = subprocess.run([sys.executable, "-W", "ignore", "-c", program, *argv], cwd=ROOT, timeout=300,
                        env=dict(os.environ, XLA_FLAGS="", STRATA_CACHE=toy.CACHE), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert int(done.stdout.rpartition("GREW")[2]) < 20_000
  assert json.loads((tmp_path / "final.json").read_text())["recompiled"] == 0
