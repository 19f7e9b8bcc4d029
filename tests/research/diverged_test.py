"""A run that breaks ends with exit 3, and one call finds the same broken numbers again (row 12)."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from research import build
from research import initialize
from research import program as programs
from research import replay
from research.metrics import read
from research.tasks.parity import Parity
from tests.research import toy


@dataclasses.dataclass(frozen=True)
class Poisoned(Parity):
  """Parity whose batches from `first` to `last` hold `poison`, in the weights of one row."""

  first: int = 0
  last: int = 10**6
  poison: float = np.nan

  def batch(self, split, step, rows=slice(None)):
    batch = super().batch(split, step, rows)
    hurt = (split == "train") & (step >= self.first) & (step <= self.last)
    return batch | {"weights": batch["weights"].at[3].multiply(jnp.where(hurt, self.poison, 1.0))}

  def fingerprint(self):
    return {"dataset": "poisoned"}


class PoisonedFile(Poisoned):
  """The same from the host: its last batch must be in the post-mortem."""

  on_device = False

  def batch(self, split, step, rows=slice(None)):
    return jax.tree.map(np.asarray, super().batch(split, step, rows))


def _run(tmp_path, monkeypatch, task, *argv):
  monkeypatch.setattr(build, "task_of", lambda config: task)
  code, said, errors = toy.main(f"--workdir={tmp_path / 'run'}", "--config.optim.steps=20", *argv)
  assert not errors
  return code, said


def _replayed(folder, seeds=0):
  config = ml_collections.ConfigDict(json.loads((folder / "config.json").read_text()))
  return replay.replay(folder / "postmortem", programs.make(config, seeds=seeds))


@pytest.mark.parametrize("task", [
    Poisoned(8, 16, first=6), Poisoned(8, 16, first=3, last=7), PoisonedFile(8, 16, first=6),
    pytest.param(Poisoned(8, 16, first=6, poison=np.inf), marks=pytest.mark.slow)],
                         ids=["nan_for_ever", "patience_exactly", "from_the_host", "inf"])
def test_data_that_stay_broken_end_the_run_and_break_again(tmp_path, monkeypatch, task):
  code, said = _run(tmp_path, monkeypatch, task)
  assert code == 3 and f"5 steps in a row, up to step {task.first + 5}" in said
  found = _replayed(tmp_path / "run")
  assert not np.isfinite(found["loss"]) and found["bad_gradients"] and not found["bad_params"]
  assert not (tmp_path / "run" / "final.json").exists()


def test_one_step_less_than_patience_is_survived_and_counted(tmp_path, monkeypatch):
  code, _ = _run(tmp_path, monkeypatch, Poisoned(8, 16, first=6, last=9))
  final = json.loads((tmp_path / "run" / "final.json").read_text())
  assert code == 0 and final["skipped"] == 4 and np.isfinite(final["eval/loss"])
  assert [r["skipped"] for r in read(tmp_path / "run" / "metrics.jsonl") if "loss" in r] == [0, 4, 4, 4]


def test_parameters_that_start_broken_are_named(tmp_path, monkeypatch):
  real = initialize.initialize

  def broken(*args):
    params = real(*args)
    params["head"]["kernel"] = params["head"]["kernel"].at[0, 0].set(jnp.nan)
    return params

  monkeypatch.setattr(initialize, "initialize", broken)
  code, _ = _run(tmp_path, monkeypatch, Parity(8, 16))
  found = _replayed(tmp_path / "run")
  assert code == 3 and found["bad_params"] == ["head/kernel"] and not np.isfinite(found["loss"])


def test_of_several_seeds_the_broken_one_is_found(tmp_path, monkeypatch):
  code, _ = _run(tmp_path, monkeypatch, Poisoned(8, 16, first=6), "--seeds=0:2", "--vectorize=always")
  assert code == 3 and not np.isfinite(_replayed(tmp_path / "run", seeds=2)["loss"])
