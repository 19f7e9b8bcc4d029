"""Claims from the command to the verdict, the exit code and the record."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from research import exit_codes, local, scoreboard, settings
from research import unit, verdict_files, verify

ROOT = pathlib.Path(__file__).parents[2]
FILE = str(pathlib.Path(__file__).with_name("toy_claims.py"))


def _draw(record, path):
  """Stands for the figure; every call leaves a trace."""
  path.parent.mkdir(parents=True, exist_ok=True)
  for suffix in (".png", ".csv"):
    path.with_suffix(suffix).write_text(json.dumps(record["values"]))


@pytest.fixture(scope="module")
def judged(one_device, tmp_path_factory):
  """(directory, exit code, output) of all claims of the toy, its units trained in this process."""
  at = tmp_path_factory.mktemp("verify") / "toy"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(local, "run", lambda units, jobs, board: [unit.run_unit(one) for one in units])
    patch.setattr(settings, "prepare", lambda **_: None)
    patch.setattr(verdict_files, "_draw", _draw)
    return at, *_main(FILE, f"--workdir={at}")


@pytest.fixture
def finished(judged, monkeypatch):
  """The directory of finished runs, with nothing allowed to train."""
  def refuse(*_):
    raise RuntimeError("nothing is left to train")
  monkeypatch.setattr(local, "run", refuse)
  monkeypatch.setattr(verdict_files, "_draw", _draw)
  return judged[0]


def _main(*argv):
  said, errors = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
    code = verify.main(list(map(str, argv)))
  return code, said.getvalue(), errors.getvalue()


def test_a_true_claim_holds_a_false_one_fails_and_an_underpowered_one_is_open(judged):
  at, code, said, errors = judged
  assert (code, errors) == (0, "") and "strata: 3 claims of" in said
  records = {record["id"]: record for record in json.loads((at / "verdict.json").read_text())}
  assert {key: record["verdict"] for key, record in records.items()} == {
      "true": "HOLDS", "false": "FAILS", "open": "INCONCLUSIVE"}
  np.testing.assert_allclose([records["true"]["effect"], records["false"]["effect"]], [1, -1], atol=0.05)
  assert records["open"]["seeds"] == [0, 1] and records["true"]["seeds"] == [0, 1, 2]
  assert all(record["minutes"] > 0 and (at / "figures" / f"{key}.png").is_file() for key, record in records.items())
  for word in ("HOLDS", "FAILS", "INCONCLUSIVE"):
    assert word in said and word in (at / "summary.md").read_text()
  assert len(list(at.glob("arms/*/seed_*/final.json"))) == 3 + 3 + 2  # no arm has more seeds than its claims ask for


@pytest.mark.parametrize("names, code", [
    (["false"], 10), (["open"], 11), (["true"], 0), (["true", "open", "false"], 10), (["true", "open"], 11)])
def test_strict_tells_by_the_exit_code(finished, monkeypatch, names, code):
  real = verify._chosen
  def chosen(given):
    (file, claims), = real(types.SimpleNamespace(all=False, family="", names=[FILE])).items()
    return {file: [claim for claim in claims if claim.id in names]}
  monkeypatch.setattr(verify, "_chosen", chosen)
  assert _main(*names, f"--workdir={finished}", "--strict")[0] == code
  assert _main(*names, f"--workdir={finished}")[0] == 0
  kept = json.loads((finished / "verdict.json").read_text())
  assert {record["id"] for record in kept} == {"true", "false", "open"}  # verdicts of before stay


def test_finished_runs_are_judged_again_without_training(finished, monkeypatch):
  drawn = []
  monkeypatch.setattr(verdict_files, "_draw", lambda record, path: drawn.append(record["id"]))
  before = json.loads((finished / "verdict.json").read_text())
  assert _main(FILE, f"--workdir={finished}")[0] == 0 and not drawn
  key = lambda record: record["id"]
  assert sorted(json.loads((finished / "verdict.json").read_text()), key=key) == sorted(before, key=key)
  changed = [record | {"effect": 7.0} if record["id"] == "open" else record for record in before]
  (finished / "verdict.json").write_text(json.dumps(changed))
  assert _main(FILE, f"--workdir={finished}")[0] == 0 and drawn == ["open"]


def test_judging_finished_runs_needs_no_jax(judged):
  # The figures are there, so nothing that draws is needed either.
  program = ("import sys; from research import verify\ncode = verify.main(sys.argv[1:])\n"
             "print([m for m in ('jax', 'flax', 'matplotlib') if m in sys.modules])\nsys.exit(code)")
  done = subprocess.run([sys.executable, "-c", program, FILE, f"--workdir={judged[0]}"], cwd=ROOT, timeout=60,
                        env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True)
  assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("argv, says", [
    (["training_does_not_hlp"], "did you mean 'training_does_not_help'?"), (["contrls"], "did you mean 'controls'?"),
    ([], "name a claim or an experiment, or give --all"), (["--familly=x"], "did you mean '--family'?"),
    (["--family=control"], "did you mean 'controls'?"), (["byte_lm"], "has no claims()"),
    (["tests/none.py"], "is no file"), (["controls", "--preset=cpux"], "did you mean 'cpu'?"),
    (["controls", "--record", "--config.optim.lr=1"], "leave out --config.optim.lr"),
    (["controls", "--config.optim.lrr=1"], "did you mean 'lr'?"),
    (["controls", FILE, "--workdir=x"], "--workdir is of one experiment")])
def test_a_slip_is_one_line_and_exit_2(tmp_path, monkeypatch, argv, says):
  monkeypatch.chdir(tmp_path)
  code, _, errors = _main(*argv)
  assert code == exit_codes.CONFIG and says in errors and errors.startswith("error: ") and errors.count("\n") == 1
  assert not list(tmp_path.iterdir())


def test_a_metric_that_no_run_will_have_is_refused_before_anything_runs(tmp_path, monkeypatch):
  source = (ROOT / "experiments/controls.py").read_text()
  file = tmp_path / "misspelt.py"
  file.write_text(source.replace('metric="eval/loss"', 'metric="eval/los"'))
  monkeypatch.setattr(settings, "prepare", lambda **_: None)
  code, _, errors = _main(file, f"--workdir={tmp_path / 'runs'}", "--preset=smoke")
  assert code == 2 and "did you mean 'eval/loss'?" in errors and not (tmp_path / "runs").exists()


def test_the_list_is_what_the_files_say(capsys, tmp_path, monkeypatch):
  monkeypatch.setattr(verdict_files, "RECORDS", tmp_path)
  assert verify.main(["--list", "--json"]) == 0
  records = json.loads(capsys.readouterr().out)
  assert {record["experiment"] for record in records} >= {"controls"}
  for record in records:
    assert set(record) == {"id", "experiment", "paper", "year", "statement", "kind", "minutes", "verdict"}
    assert record["verdict"] is None and record["minutes"] is None
  assert verify.main(["--list"]) == 0
  page = capsys.readouterr().out
  assert all(record["id"] in page and record["statement"] in page for record in records) and "never recorded" in page


@pytest.fixture
def recorded(finished, tmp_path, monkeypatch):
  """Folder of the records, with the toy standing among the project's experiments."""
  monkeypatch.setattr(verdict_files, "RECORDS", tmp_path / "results")
  monkeypatch.setattr(verdict_files.find, "ROOT", tmp_path)
  (tmp_path / "experiments").mkdir()
  file = tmp_path / "experiments" / "toy_claims.py"
  file.write_text(pathlib.Path(FILE).read_text())
  return tmp_path / "results", lambda: _main(file, f"--workdir={finished}", "--record")


def test_a_record_is_kept_with_what_it_was_measured_on(recorded):
  results, record = recorded
  assert record()[0] == 0
  assert sorted(path.name for path in results.rglob("*") if path.is_file()) == sorted(
      ["README.md", "verdict.json", *(f"{key}.{suffix}" for key in ("true", "false", "open") for suffix in ("png", "csv"))])
  records = json.loads((results / "toy_claims" / "verdict.json").read_text())
  assert [r["id"] for r in records] == ["false", "open", "true"] and all(r["experiment"] == "toy_claims" for r in records)
  assert all(r["preset"] == "cpu" and {"jax", "python", "platform", "commit"} <= set(r["environment"]) for r in records)
  page = (results / "README.md").read_text()
  lines = [line for line in page.splitlines() if line.startswith("| A toy")]
  assert [line.count("**HOLDS**") for line in lines] == [0, 0, 1]  # in order of the year
  assert "Low is better \\| than the base" in page and "3 claims: 1 HOLDS, 1 FAILS, 1 INCONCLUSIVE." in page


def test_a_record_again_is_the_same_and_other_claims_stay(recorded):
  results, record = recorded
  assert record()[0] == 0
  file = results / "toy_claims" / "verdict.json"
  first = json.loads(file.read_text())
  file.write_text(json.dumps([*first, first[0] | {"id": "older"}]))
  assert record()[0] == 0
  assert json.loads(file.read_text()) == sorted([*first, first[0] | {"id": "older"}], key=lambda r: r["id"])
  assert scoreboard.page(verdict_files.recorded()).count("\n| A toy") == 4


def test_what_lies_outside_the_project_is_not_recorded(finished, tmp_path, monkeypatch):
  monkeypatch.setattr(verdict_files, "RECORDS", tmp_path)
  code, _, errors = _main(FILE, f"--workdir={finished}", "--record")
  assert code == 2 and "--record is for the files in experiments/" in errors and not list(tmp_path.iterdir())


def test_the_page_links_figures_of_whole_studies(tmp_path, monkeypatch):
  monkeypatch.setattr(verdict_files, "RECORDS", tmp_path)
  for name in ("study/depth-24.png", "study/frontier-loss.png", "study/claim.png", "other/claim.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
  assert verdict_files.whole() == {"study": ["depth-24", "frontier-loss"]}
  page = scoreboard.page([], verdict_files.whole())
  assert "- study: [depth-24](study/depth-24.png), [frontier-loss](study/frontier-loss.png)\n" in page
