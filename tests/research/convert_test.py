"""The verb research.convert: a converted run computes the same, and every slip is one line."""

import contextlib
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import __main__ as verbs
from research import config as configs
from research import conversion, convert
from research import program as programs
from research import runs
from research.checkpoint import Checkpoints, params_sha256
from tests.research import toy

PRE_LN = dict(model__mixer__name="attention.Attention", model__norm__name="layer_norm.LayerNorm",
              model__dropout=0.0, optim__warmup=0, optim__steps=1)


def _command(*argv):
  said, errors, cache = io.StringIO(), io.StringIO(), jax.config.jax_compilation_cache_dir
  try:
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors), pytest.MonkeyPatch.context() as patch:
      patch.setenv("STRATA_CACHE", toy.CACHE)
      code = convert.main([str(a) for a in argv])
  finally:
    jax.config.update("jax_compilation_cache_dir", cache)  # what the command sets for its process
  return code, said.getvalue(), errors.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Returns the directory of a run of a Pre-LN model that counts as finished, and its validation loss."""
  program = programs.make(toy.config(**PRE_LN))
  state = program.init(0)
  draw = np.random.default_rng(0)
  params = jax.tree.map(lambda p: jnp.asarray(p + 0.3 * draw.standard_normal(p.shape).astype(p.dtype)), state.params)
  state = state.replace(params=params, step=jnp.ones((), jnp.int32))
  directory = tmp_path_factory.mktemp("run") / "pre_ln"
  directory.mkdir()
  (directory / "config.json").write_text(configs.text_of(program.config))
  checkpoints = Checkpoints(directory / "ckpt", identity=runs.identity_of(program, 0))
  checkpoints.save(1, state)
  checkpoints.close()
  return directory, program.evaluated(state, 0)["eval/loss"]


def test_a_converted_run_is_a_finished_run_of_the_same_function(trained):
  directory, loss = trained
  code, said, errors = _command("--from", directory, "--to", "pre_crms_norm")
  assert code == 0 and "config.model.width=15" in said, errors
  out = directory.with_name("pre_ln-pre_crms_norm")
  final = json.loads((out / "final.json").read_text())
  assert final["conversion/logits"] < 1e-5 and abs(final["eval/loss"] - loss) < 1e-5
  # What was overridden leads from the old config to the new one, whose program takes the checkpoint.
  made = configs.from_text((out / "config.json").read_text())
  again = toy.config(**PRE_LN)
  configs.override(again, json.loads((out / "conversion.json").read_text())["overrides"])
  assert configs.id_of(again) == configs.id_of(made)
  program = programs.make(again)
  checkpoints = Checkpoints(out / "ckpt", identity=runs.identity_of(program, 0), read_only=True)
  step, state = checkpoints.restore(program.abstract)
  checkpoints.close()
  assert step == 1 and params_sha256(state.params) == final["params_sha256"]


def test_every_chain_leads_to_the_model_that_its_config_builds():
  """Batch norms fuse; LayerNorm Scaling and a kernel transform go first."""
  config = toy.config(model__mixer__name="attention.Attention", model__norm__name="unified_norm.UnifiedNorm",
                      model__placement="layernorm_scaling", model__mixer__kernel_transform="weight_norm")
  program = programs.make(config)
  found = conversion.measured(program, program.init(0), "fused")
  assert found["fused/logits"] < 1e-5 and found["fused/loss"] < 1e-5


@pytest.mark.parametrize("argv, says", [
    (["--from=/nowhere", "--to=to_rms"], "holds no run"),
    (["--from=/nowhere", "--to=to_rmsn"], "did you mean 'to_rms'?"),
    (["--to=to_rms"], "--from"),
    (["--from=x", "--to=to_rms", "--config.seed=1"], "only --from, --to and --workdir"),
    (["--from=x", "--too=to_rms"], "--to")])
def test_a_slip_is_one_line_and_exit_2(argv, says):
  code, _, errors = _command(*argv)
  assert code == 2 and says in errors
  assert errors.startswith("error: ") and errors.count("\n") == 1


@pytest.mark.parametrize("damage, to, says", [
    (lambda at: None, "fused", "LayerNorm is not affine"),
    (lambda at: (at / "config.json").write_text("[1]"), "to_rms", "config.json cannot be read"),
    (lambda at: (at / "ckpt").rename(at / "elsewhere"), "to_rms", "holds no checkpoint")])
def test_what_is_no_finished_pre_ln_run_is_refused(trained, tmp_path, damage, to, says):
  copy = tmp_path / "copy"
  shutil.copytree(trained[0], copy)
  damage(copy)
  code, _, errors = _command("--from", copy, "--to", to)
  assert code == 2 and says in errors and errors.count("\n") == 1
  assert not (tmp_path / f"copy-{to}").exists()


def test_the_verb_is_listed():
  assert "research.convert" in verbs.VERBS and set(convert.TO) == set(conversion.CHAINS)
