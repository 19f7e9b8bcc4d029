"""A run that begins as a smaller one: what it starts from, and that it can be cut anywhere."""

import json
import shutil

import jax
import numpy as np
import pytest

from research import grow, growth
from research import program as programs
from research.errors import ConfigError
from research.metrics import deterministic_lines, read
from tests.research import toy

SIZES = dict(model__depth=2, model__dropout=0.0)


GROW = [f"--config.{k}={v}" for k, v in {
    "model.depth": 2, "model.dropout": 0.0, "train.eval_every": 0, "train.log_every": 1, "init.grow": "stack",
    "init.grow_factor": 2, "init.grow_steps": 4, "optim.steps": 6}.items()]


@pytest.fixture
def command(monkeypatch, capsys):
  """Returns a function that runs `research.grow` and gives (exit code, stdout, stderr)."""
  monkeypatch.setenv("STRATA_CACHE", toy.CACHE)
  cache = jax.config.jax_compilation_cache_dir
  yield lambda *argv: (grow.main(list(map(str, argv))), *capsys.readouterr())
  jax.config.update("jax_compilation_cache_dir", cache)  # what the command sets for its process


def _config(**init):
  fields = dict(grow="stack", grow_factor=2, grow_steps=4) | init
  return toy.config(**SIZES, **{f"init__{k}": v for k, v in fields.items()})


def test_grown_runs_side_by_side_begin_with_the_layers_of_their_small_ones():
  seeds = 2
  program = programs.make(_config(), seeds=seeds)
  small = program.small
  draw = np.random.default_rng(0)
  shapes = small.abstract.replace(key=()), program.abstract.replace(key=())
  old, first = jax.tree.map(lambda s: draw.standard_normal(s.shape).astype(s.dtype), shapes)
  keys = jax.random.split(jax.random.key(0), seeds)
  old, first = old.replace(key=keys), first.replace(key=keys)
  got = growth.grown(small, program, old, first)
  blocks = old.params["stack"]["layers_0_to_0"]["block_0"]
  def check(new, was):
    np.testing.assert_array_equal(new, np.stack([was, was], axis=1))
  jax.tree.map(check, got.params["stack"]["scan_0_to_1"]["block_0"], blocks)
  np.testing.assert_array_equal(got.params["embedding"]["embedding"], old.params["embedding"]["embedding"])
  jax.tree.map(np.testing.assert_array_equal, (got.step, got.cursor), (first.step, first.cursor))
  assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(got.opt_state))


def test_a_grown_run_that_is_cut_between_its_models_ends_in_the_same_bits(tmp_path):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  assert toy.main(*GROW, f"--workdir={whole}")[0] == 0
  # What a kill right after the small model leaves: its folder, and nothing of the grown one.
  shutil.copytree(whole / "small", cut / "small")
  assert toy.main(*GROW, f"--workdir={cut}")[0] == 0
  final, want = (json.loads((at / "final.json").read_text()) for at in (cut, whole))
  assert final == want
  assert deterministic_lines(cut / "metrics.jsonl") == deterministic_lines(whole / "metrics.jsonl")
  assert [r["step"] for r in read(whole / "small" / "metrics.jsonl") if "loss" in r] == [1, 2, 3, 4]


def test_the_command_writes_a_run_that_goes_on_from_the_grown_model(tmp_path, command):
  old, new = tmp_path / "old", tmp_path / "new"
  short = ["--config.model.dropout=0.0", "--config.train.eval_every=0", "--config.optim.steps=6"]
  assert toy.main(*short, f"--workdir={old}")[0] == 0
  asked = [f"--config={toy.FILE}", f"--from={old}", f"--workdir={new}", "--operator=zero"]
  code, said, _ = command(*asked)
  assert code == 0
  go_on = said.splitlines()[-1].split()[4:]
  code, said, _ = toy.main(*go_on, "--eval_only")
  # Growth by silent layers: the grown model, trained no further, is as good as the small one.
  want = json.loads((old / "final.json").read_text())["eval/loss"]
  assert code == 0 and f"step 0 eval/loss {want:.6f}" in said
  code, _, error = command(*asked)
  assert code == 2 and "holds a run already" in error


@pytest.mark.parametrize("argv, says", [
    (["--from=/none"], "has no config.json"), (["--from=/none", "--operator=learn"], "--operator='learn'"),
    (["--from=/none", "--operator=factor"], "train a run with config.init.grow='factor' and grow_steps"),
    (["--from=/none", "--operator=relax"], "train a run with config.init.grow='relax' and grow_steps")])
def test_what_the_command_cannot_do_is_one_line_and_exit_2(argv, says, command):
  code, _, error = command(*argv)
  assert code == 2 and says in error and error.count("\n") == 1


def test_a_model_can_begin_as_the_untied_one():
  config = toy.config(**SIZES, model__share="cycle:1", model__lora_rank=2)
  with config.unlocked():
    config.init.update(grow="relax", grow_steps=4)
  program = programs.make(config)  # refuses trees that differ
  small = program.small.config
  assert (small.model.depth, small.model.share, small.model.lora_rank, small.optim.steps) == (2, "", 0, 4)


def test_a_model_whose_units_were_cut_into_experts_says_what_the_dense_one_said():
  program = programs.make(toy.config(
      **SIZES, model__channel__name="factored_glu.FactoredGLU", model__channel__experts=4, model__channel__top_k=4,
      init__grow="factor", init__grow_factor=2, init__grow_steps=4))
  small, draw = program.small, np.random.default_rng(1)
  assert small.config.model.channel.to_dict() == {"name": "glu.GLU", "hidden": 16}
  old, first = (jax.tree.map(lambda s: draw.standard_normal(s.shape).astype(s.dtype), made.abstract.replace(key=()))
                .replace(key=jax.random.key(0)) for made in (small, program))
  got = growth.grown(small, program, old, first)
  tokens = draw.integers(0, 2, (3, 8))
  said = [jax.jit(model.apply)(variables, tokens)[0] for model, variables in (
      (small.model, {"params": old.params}), (program.model, {"params": got.params, **got.extra}))]
  np.testing.assert_allclose(said[1], said[0], rtol=1e-4, atol=1e-4)
  cut, teacher = (tree["stack"]["scan_0_to_1"]["block_0"]["channel"] for tree in (got.params, got.extra["teacher"]))
  np.testing.assert_array_equal(teacher["down_EFD"], cut["experts_down"]["kernel"])
  np.testing.assert_array_equal(
      cut["router"]["kernel"], first.params["stack"]["scan_0_to_1"]["block_0"]["channel"]["router"]["kernel"])


def test_silent_layers_are_refused_where_a_norm_follows_them():
  config = _config(grow="zero")
  config.model.placement = "post"
  with pytest.raises(ConfigError, match="placement='post' a norm follows every layer"):
    programs.make(config)


@pytest.mark.parametrize("init, says", [
    (dict(grow="stak"), "did you mean 'stack'?"),
    (dict(grow_factor=3), "config.model.depth=2 must be a multiple of config.init.grow_factor=3"),
    (dict(grow_factor=1), "grow_factor=1 must be at least 2"),
    (dict(grow="relax"), "set config.model.share, as in 'cycle:2'"),
    (dict(grow="factor"), "set config.model.channel.name='factored_glu.FactoredGLU'"),
    (dict(grow_steps=0), "grow_steps=0 from 1 to"),
    ])
def test_what_cannot_grow_is_refused_before_anything_is_trained(init, says):
  with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
    programs.make(_config(**init))
