"""Several seeds at once are each of them alone, on the same data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import exit_codes
from research import program as programs
from research import runs
from research.train import Outcome
from tests.research import toy

SEEDS = (3, 4, 7)


def _after(program, seeds, steps=4):
  state = program.init(seeds)
  for _ in range(steps):
    state, _ = program.step(state, None)
  return jax.device_get((state.params, state.sums))


def test_a_vmapped_group_is_its_members_one_by_one():
  config = toy.config()
  together = _after(programs.make(config, seeds=3), jnp.asarray(SEEDS))
  single = programs.make(config)
  for n, seed in enumerate(SEEDS):
    alone = _after(single, seed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[n], b, rtol=2e-4, atol=2e-6), together, alone)
  assert np.all(np.ptp(together[0]["head"]["kernel"], axis=0) > 0)  # three models, not one


def _run(folder, how, *more):
  code, said, errors = toy.main(f"--workdir={folder}", "--seeds=0:2", f"--vectorize={how}",
                                "--config.optim.steps=6", "--config.train.eval_every=0", *more)
  assert not errors
  return code, said


def _finals(folder):
  return [json.loads((folder / f"seed_{n}" / "final.json").read_text()) for n in (0, 1)]


@pytest.mark.parametrize("how", ["always", "never"])
def test_the_choice_is_recorded_and_kept(tmp_path, how):
  assert _run(tmp_path, how)[0] == 0
  first, other = _finals(tmp_path), {"always": "never", "never": "always"}[how]
  record = json.loads((tmp_path / "seeds.json").read_text())
  assert record == {"seeds": [0, 1], "vmapped": how == "always"}
  code, said = _run(tmp_path, other)
  assert code == 0 and said.count("finished already") == 2
  assert json.loads((tmp_path / "seeds.json").read_text()) == record and _finals(tmp_path) == first


def test_a_group_in_turn_goes_on_with_the_seed_that_was_cut(tmp_path, monkeypatch):
  assert _run(tmp_path / "whole", "never")[0] == 0
  real = runs.train

  def cut(program, seed, *args):
    return Outcome(exit_codes.PREEMPTED, None, []) if seed == 1 else real(program, seed, *args)

  monkeypatch.setattr(runs, "train", cut)
  assert _run(tmp_path / "cut", "never")[0] == 42
  monkeypatch.setattr(runs, "train", real)
  code, said = _run(tmp_path / "cut", "never")
  assert code == 0 and said.count("finished already") == 1
  assert _finals(tmp_path / "cut") == _finals(tmp_path / "whole")


@pytest.mark.slow
def test_auto_times_both_and_says_what_it_took(tmp_path):
  code, said = _run(tmp_path, "auto")
  vmapped = json.loads((tmp_path / "seeds.json").read_text())["vmapped"]
  assert code == 0 and f"training them {'vmapped' if vmapped else 'one after the other'}" in said
