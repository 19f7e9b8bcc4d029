"""Measures of layers on answers that are algorithms, figures from arrays, linear mixers in the same tasks."""

import functools
import types

import jax
import numpy as np
import pytest

from layers.in_context import by_position, closed_forms
from research import arrays, build, in_context_figures
from research import config as configs
from research import in_context_layers as measures
from research import program as programs
from research.errors import ConfigError
from research.tasks.function_classes import FunctionClasses

TASK = FunctionClasses(dims=2, pairs=6, noise=0.25)


@functools.cache
def _drawn():
  draw = np.random.default_rng(0)
  x, w = draw.standard_normal((1500, 7, 2)), draw.standard_normal((1500, 2))
  f = np.einsum("pnd,pd->pn", x, w)
  drawn = types.SimpleNamespace(x_BND=x, f_BN=f, y_BN=f + 0.5 * draw.standard_normal(f.shape))
  return drawn, by_position.answers(x, drawn.y_BN, 0.25)


def test_risks_by_position_are_the_closed_forms_and_infinite_where_they_are():
  drawn, known = _drawn()
  found = measures.of_positions(TASK, drawn, known["ridge"], known)
  for at in (4, 5, 6):
    want = closed_forms.averaging_risk(at, 2, 0.25)
    assert abs(found["position/averaging"][at] - want) < 5 * found["position_error/averaging"][at]
  want = [np.isinf(closed_forms.least_squares_risk(n, 2, 0.25)) for n in range(1, 7)]
  np.testing.assert_array_equal(np.isinf(found["position/least_squares"]), [False, *want])
  assert found["risk/decoder"] == found["risk/ridge"] == found["position/ridge"][-1]
  step = measures.one_step(TASK, known["averaging"])[:, 6]
  assert abs(np.mean((step - drawn.f_BN[:, 6]) ** 2) - closed_forms.one_step_risk(6, 2, 0.25)) < 0.1


def test_ridge_is_nearest_to_itself_and_zero_is_not_taken_for_it():
  drawn, known = _drawn()
  near = lambda answer: measures.of_positions(TASK, drawn, answer, known)
  ridge, zero, ols = near(known["ridge"]), near(0 * known["ridge"]), near(known["least_squares"])
  assert ridge["spd/ridge_over_others"] == 0.0 and ols["spd/ridge_over_others"] > 1e6
  assert zero["spd/ridge_over_ols"] < 1 < 1e6 < zero["spd/ridge_over_others"]  # why the first is not enough


@pytest.mark.parametrize("family, name", [("sparse", "risk_over/lasso"), ("decision_tree", "risk_over/greedy_tree")])
def test_a_fit_made_for_the_family_beats_least_squares(family, name):
  draw = np.random.default_rng(1)
  x, w = draw.standard_normal((200, 21, 12)), draw.standard_normal((200, 12)) * (np.arange(12) < 2)
  f = np.einsum("pnd,pd->pn", x, w) if family == "sparse" else np.sign(x[..., 0]) + 2 * np.sign(x[..., 1])
  drawn = types.SimpleNamespace(x_BND=x, f_BN=f, y_BN=f + 0.3 * draw.standard_normal(f.shape))
  guess = by_position.answers(x, drawn.y_BN)["least_squares"][:, -1]
  assert list(measures.beside_fits(TASK, drawn, guess)) == []
  assert measures.beside_fits(FunctionClasses(family=family, tree_depth=2), drawn, guess)[name] > 1.2


def test_a_layer_that_is_an_algorithm_matches_its_number_of_steps():
  drawn, known = _drawn()
  layers = np.stack([known["newton"][1], known["newton"][3], known["newton"][6], known["ridge"]])
  found = measures.matches(drawn.y_BN, layers, known)
  assert [found[f"match/newton_layer_{layer}"] for layer in (1, 2, 3)] == [1, 3, 6] and found["match/newton_rise"] == 2
  assert found["sime/newton"].shape == (4, 13) and found["sime/gd"].shape == (4, 11)
  same = measures.matches(drawn.y_BN, np.stack([known["gd"][2], known["gd"][2], known["gd"][4]]), known)
  assert same["match/gd_layer_1"] == 4 and same["match/gd_doublings"] == 0


def test_arrays_stay_with_the_run_and_numbers_go_on(tmp_path):
  numbers = arrays.kept(tmp_path, {"a/b": np.float32(2.5), "c/d": np.arange(3.0), "n": 1})
  assert numbers == {"a/b": 2.5, "n": 1.0} and not arrays.read(tmp_path / "none")
  np.testing.assert_array_equal(arrays.read(tmp_path)["c/d"], [0, 1, 2])


def test_figures_are_drawn_from_saved_arrays_alone(tmp_path):
  drawn, known = _drawn()
  layers = np.stack([known["newton"][1], known["newton"][3], known["ridge"]])
  found = measures.of_positions(TASK, drawn, known["ridge"], known) | measures.matches(drawn.y_BN, layers, known)
  for seed in (0, 1):
    (tmp_path / f"arms/one/seed_{seed}").mkdir(parents=True)
    arrays.kept(tmp_path / f"arms/one/seed_{seed}", found)
  asked = types.SimpleNamespace(names=["one", "none"], seeds={"one": (0, 1, 2), "none": (0,)}, directory=tmp_path)
  paths = in_context_figures.draw(asked)
  assert [path.name for path in paths] == ["in-context-risk-one.png", "in-context-layers-one.png"]
  assert all(path.stat().st_size > 5000 for path in paths)
  table = paths[1].with_suffix(".csv").read_text().splitlines()
  assert len(table) == 1 + 3 * (13 + 11)
  best = max((line.split(",") for line in table[1:] if line.startswith("newton,layer 2")), key=lambda row: float(row[3]))
  assert float(best[2]) == 3.0


def _config(**overrides):
  config = configs.load("which_algorithm:smoke")[2]
  configs.override(config, {"task.batch_size": 8, "model.depth": 1, "model.width": 8, **overrides})
  return config


@pytest.mark.parametrize("name", ["delta_net.DeltaNet", "gla.GLA"])
def test_another_mixer_drops_in_by_its_name_and_no_answer_knows_its_y_or_a_later_one(name):
  config = _config(**{"model.mixer.name": name})
  model = build.model_of(config, build.task_of(config), train=False)
  tokens = np.random.default_rng(1).standard_normal((1, 19, 4)).astype(np.float32)
  changed = tokens.copy()
  changed[:, 9] += 1.0  # the y of the fifth point

  @jax.jit
  def answers(both):
    return model.apply(model.init(jax.random.key(0), both[:1]), both)[0]

  one, other = answers(np.concatenate([tokens, changed]))
  assert one.shape == (10,)
  np.testing.assert_allclose(one[:5], other[:5], atol=1e-5)
  assert np.all(np.abs(one[5:] - other[5:]) > 1e-6)


def test_one_answer_per_prompt_is_refused():
  program = types.SimpleNamespace(config=configs.load("gd_by_attention:smoke")[2])
  with pytest.raises(ConfigError, match="read_out must be 'every_other'"):
    measures.measure(TASK, program, None)


@pytest.mark.slow
def test_a_whole_measure_has_every_number_of_its_list(monkeypatch):
  monkeypatch.setattr(measures, "PROMPTS", 64)
  program = programs.make(_config())
  found = program.task.measure(program, program.init(0))
  for name in ("spd/ridge_over_others", "ilwd/ridge", "linear_fit/explained", "probe/moment", "shift/opposite"):
    assert np.isfinite(found[name])
  assert found["simw/gd"].shape == (2, 11) and found["probe_by_layer/weights"].shape == (1,)
