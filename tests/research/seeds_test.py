"""Several seeds at once are each of them alone, each with data of its own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import config as configs
from research import exit_codes
from research import program as programs
from research import runs
from research import seeds as many
from research import state
from research.train import Outcome
from tests.research import toy

SEEDS = (3, 4, 7)


def _after(program, seeds, steps=4):
  now = program.init(seeds)
  for _ in range(steps):
    now, _ = program.step(now, None)
  return jax.device_get((now.params, now.sums))


def test_a_vmapped_group_is_its_members_one_by_one():
  config = toy.config()
  together = _after(programs.make(config, seeds=3), jnp.asarray(SEEDS))
  single = programs.make(config)
  for n, seed in enumerate(SEEDS):
    alone = _after(single, seed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[n], b, rtol=2e-4, atol=2e-6), together, alone)
  assert np.all(np.ptp(together[0]["head"]["kernel"], axis=0) > 0)  # three models, not one


def test_the_clock_never_chooses_how_one_seed_is_trained(monkeypatch):
  monkeypatch.setattr(many, "_seconds_per_step", lambda program, seeds: 1.0 if program.seeds else 2.0)
  assert many.faster(toy.config(), (3, 4), print).seeds == 2
  assert many.faster(toy.config(), (3,), print) is None


def test_seeds_see_different_data_and_arms_of_one_seed_the_same():
  first = [state.first_batch(seed) for seed in range(2048)]
  assert np.all(np.diff(first) == 2**20) and first[0] == 0 and first[-1] + 2**20 <= 2**31
  one, other = (programs.make(toy.config(model__width=width)) for width in (16, 32))
  seen = lambda program, seed: program.task.batch("train", program.init(seed).cursor)["inputs"]
  np.testing.assert_array_equal(seen(one, 3), seen(other, 3))
  assert not np.array_equal(seen(one, 3), seen(one, 4))


def test_a_vmapped_group_reads_from_a_file_what_its_members_read():
  config = configs.load("digits:smoke")[2]
  config.optim.steps, config.optim.warmup, config.model.depth = 4, 0, 1
  together, single = programs.make(config, seeds=2), programs.make(config)
  seeds = jnp.asarray([5, 9])
  both = together.train_batch(seeds, 2)
  group, _ = together.step(together.init(seeds), together.put_train(both))
  for n, seed in enumerate(seeds):
    alone = single.train_batch(seed, 2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[n], b), both, alone)
    lone, _ = single.step(single.init(seed), single.put_train(alone))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[n], b, rtol=2e-4, atol=2e-6),
                 jax.device_get(group.sums), jax.device_get(lone.sums))
  assert not np.array_equal(both["inputs"][0], both["inputs"][1])


def _run(folder, how, *more):
  code, said, errors = toy.main(f"--workdir={folder}", "--seeds=0:2", f"--vectorize={how}",
                                "--config.optim.steps=6", "--config.train.eval_every=0", *more)
  assert not errors
  return code, said


def _finals(folder):
  return [json.loads((folder / f"seed_{n}" / "final.json").read_text()) for n in (0, 1)]


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("how", ["always", "never"])
def test_the_choice_is_recorded_and_kept(tmp_path, how):
  assert _run(tmp_path, how)[0] == 0
  first, other = _finals(tmp_path), {"always": "never", "never": "always"}[how]
  record = json.loads((tmp_path / "seeds.json").read_text())
  assert record == {"seeds": [0, 1], "vmapped": how == "always"}
  code, said = _run(tmp_path, other)
  assert code == 0 and said.count("finished already") == 2
  assert json.loads((tmp_path / "seeds.json").read_text()) == record and _finals(tmp_path) == first


@pytest.mark.usefixtures("one_device")
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
