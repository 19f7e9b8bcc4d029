"""Which arms share a figure of their profiles by depth, and what its table holds."""

import csv
import json
import types

import numpy as np
import pytest

from research import depth_by_arm


def _plan(folder, depths, seeds=(0, 1)):
  """A plan whose runs left two records each, of 10 times the layer's number and the seed at the last step."""
  values = {}
  for arm, layers in depths.items():
    values[arm] = {"eval/loss": {seed: 1.0 + seed for seed in seeds}}
    for seed in seeds:
      at = folder / "arms" / arm / f"seed_{seed}"
      at.mkdir(parents=True)
      if layers:
        record = lambda step: {"step": step, **{name: [step * (n + 1.0) + seed for n in range(layers)] for name in depth_by_arm.PANELS}}
        (at / "depth.jsonl").write_text("".join(json.dumps(record(step)) + "\n" for step in (1, 10)))
  asked = types.SimpleNamespace(directory=folder, names=tuple(depths), seeds={arm: seeds for arm in depths})
  return asked, types.SimpleNamespace(values=values)


def test_arms_of_one_depth_share_a_figure_and_an_arm_alone_has_none(tmp_path):
  paths = depth_by_arm.draw(*_plan(tmp_path, {"pre": 3, "post": 3, "deep": 4, "unmeasured": 0}))
  assert [path.name for path in paths] == ["depth-3.png"]
  assert paths[0].stat().st_size > 20_000
  rows = list(csv.DictReader(paths[0].with_suffix(".csv").read_text().splitlines()))
  assert {row["arm"] for row in rows} == {"pre", "post"}
  variance = [float(r["value"]) for r in rows if (r["arm"], r["quantity"]) == ("pre", "residual_variance")]
  assert variance == [10.5, 20.5, 30.5]  # the last step, mean of both seeds
  assert [float(r["value"]) for r in rows if (r["arm"], r["quantity"]) == ("post", "loss")] == [1.0, 2.0]


def test_a_profile_that_is_not_finite_is_a_gap(tmp_path):
  runs = {arm: [{name: [1.0, np.nan, 3.0] for name in depth_by_arm.PANELS}] for arm in ("a", "b")}
  depth_by_arm.figure(runs, {"a": {0: 1.0}, "b": {}}, tmp_path / "depth.png", layers=3)
  rows = list(csv.DictReader((tmp_path / "depth.csv").read_text().splitlines()))
  assert [int(r["layer"]) for r in rows if r["arm"] == "a" and r["quantity"] == "skip_loss"] == [1, 3]


@pytest.mark.parametrize("arms", [{}, {"pre": 0, "post": 0}])
def test_a_plan_without_profiles_has_no_figure(tmp_path, arms):
  assert depth_by_arm.draw(*_plan(tmp_path, arms)) == []
