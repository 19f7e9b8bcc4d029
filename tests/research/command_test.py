"""The command line: one line for every slip, nothing computed where nothing was asked for."""

import json

import pytest

from research import monitor
from tests.research import toy


@pytest.mark.parametrize("argv, says", [
    (["--workdri=x"], "did you mean '--workdir'?"),
    (["--config.optim.lrr=1"], "did you mean 'lr'?"),
    (["--config.optim.lr=fast"], "config.optim.lr='fast'"),
    (["--config.optim.lr"], "--config.optim.lr needs a value"),
    (["--seeds=3:1"], "--seeds='3:1'"),
    (["--vectorize=maybe"], "--vectorize"),
    (["word"], "'word'"),
    (["--config.model.mixer.name=scalar_decay.ScalarDecay"], "did you mean 'scalar_decay.ScalarDecayAttention'?"),
    (["--eval_only", "--workdir=/dev/null/none"], "there is no checkpoint")])
def test_a_slip_is_one_line_and_exit_2(argv, says):
  code, _, errors = toy.main(*argv)
  assert code == 2 and says in errors
  assert errors.startswith("error: ") and errors.count("\n") == 1


@pytest.mark.parametrize("file, says", [
    ("experiments/byte_ln.py", "did you mean 'byte_lm'?"), (toy.FILE + ":papr", "no preset 'papr'"),
    ("byte_lm:papr", "did you mean 'paper'?"), ("byte_ln", "did you mean 'byte_lm'?")])
def test_a_wrong_file_or_preset_is_one_line_and_exit_2(file, says):
  code, _, errors = toy.main(file=file)
  assert code == 2 and says in errors and errors.count("\n") == 1


def test_a_dry_run_compiles_nothing_and_writes_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  compiles = monitor.Compiles()
  code, said, _ = toy.main("--dry_run", "--config.model.width=24")
  assert code == 0 and compiles.count == 0 and not list(tmp_path.iterdir())
  assert '"width": 24' in said and "FLOPs per token" in said


def test_fresh_sets_the_earlier_run_aside(tmp_path):
  short = [f"--workdir={tmp_path}", "--config.optim.steps=5", "--config.train.eval_every=0"]
  assert toy.main(*short)[0] == 0
  first = json.loads((tmp_path / "final.json").read_text())
  assert toy.main(*short, "--fresh")[0] == 0
  earlier, = tmp_path.glob("earlier-*")
  assert json.loads((earlier / "final.json").read_text()) == first
  assert json.loads((tmp_path / "final.json").read_text()) == first  # and the same bits again
