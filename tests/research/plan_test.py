"""What is left to do of a sweep, and what was done: nothing is repeated, nothing is lost."""

import csv
import io
import json

import pytest

from research import arms
from research import config as configs
from research import plan
from research import results
from research.errors import ConfigError
from tests.research import toy

BIG = {"model.width": 32}  # from here on a CPU trains seeds one by one


def _plan(folder, seeds=range(5), common=None, varied=None):
  made = arms.make(toy.FILE, common or {}, varied or {"slow": {"optim.lr": 1e-3}, "fast": {}})
  return plan.Plan(toy.FILE, common or {}, made, {arm.name: tuple(seeds) for arm in made}, folder / "sweep")


def _finish(asked, arm, seed, name="final.json", **numbers):
  out = asked.directory / "arms" / arm / f"seed_{seed}"
  out.mkdir(parents=True, exist_ok=True)
  text = {"code": 3} if name == "diverged.json" else {"step": 60, "eval/loss": 0.5 + seed, "skipped": 0, **numbers}
  (out / name).write_text(json.dumps(text))
  return out


def _begin_group(asked, arm, seeds, vmapped=True):
  group = asked.directory / "arms" / arm / f"seeds_{seeds[0]}_{seeds[-1] + 1}"
  group.mkdir(parents=True)
  (group / "seeds.json").write_text(json.dumps({"seeds": seeds, "vmapped": vmapped}))


def _seeds(units, arm):
  return [unit["seeds"] for unit in units if unit["arm"] == arm]


def test_a_unit_is_data_that_makes_the_config_of_its_arm(tmp_path):
  asked = _plan(tmp_path, common=BIG)
  for unit in plan.units(asked, group=False):
    unit = json.loads(json.dumps(unit))  # as it crosses to another process
    arm = next(arm for arm in asked.arms if arm.name == unit["arm"])
    assert configs.id_of(arms.config_of(unit["config"], unit["overrides"])) == configs.id_of(arm.config)
    assert unit["directory"] == str(asked.directory / "arms" / arm.name) and unit["steps"] == 60


def test_first_seeds_of_all_arms_come_first(tmp_path):
  units = plan.units(_plan(tmp_path, range(3), BIG), group=False)
  assert [(u["seeds"], u["arm"]) for u in units] == [([s], arm) for s in range(3) for arm in ("slow", "fast")]


def test_nothing_finished_is_repeated_and_nothing_diverged(tmp_path):
  asked = _plan(tmp_path, common=BIG)
  for done in range(5):
    assert _seeds(plan.units(asked, group=False), "fast") == [[seed] for seed in range(done, 5)]
    _finish(asked, "fast", done, "diverged.json" if done == 2 else "final.json")
  assert _seeds(plan.units(asked, group=False), "fast") == []
  assert _seeds(plan.units(asked, group=False), "slow") == [[seed] for seed in range(5)]


def test_a_run_without_its_last_file_is_not_finished(tmp_path):
  asked = _plan(tmp_path, common=BIG)
  out = _finish(asked, "fast", 0)
  (out / "final.json").rename(out / "metrics.jsonl")
  assert [0] in _seeds(plan.units(asked, group=False), "fast")


def test_more_seeds_add_only_themselves(tmp_path):
  asked = _plan(tmp_path, range(3), BIG)
  for arm in asked.names:
    for seed in range(3):
      _finish(asked, arm, seed)
  assert plan.units(asked, group=False) == []
  more = plan.units(_plan(tmp_path, range(5), BIG), group=False)
  assert [(u["arm"], u["seeds"]) for u in more] == [(arm, [s]) for s in (3, 4) for arm in asked.names]


@pytest.mark.parametrize("processes, sizes", [(1, [5]), (2, [5]), (4, [3, 2]), (6, [2, 2, 1]), (64, [1] * 5)])
def test_groups_are_cut_so_that_each_process_has_one(tmp_path, processes, sizes):
  small, big = _plan(tmp_path), _plan(tmp_path, common=BIG)
  for asked, group in ((small, False), (small, True), (big, True)):
    found = _seeds(plan.units(asked, group, processes), "fast")
    assert [len(seeds) for seeds in found] == sizes and sum(found, []) == list(range(5))
  assert _seeds(plan.units(big, False, processes), "fast") == [[seed] for seed in range(5)]


def test_what_is_grouped_are_neighbours_of_what_is_left(tmp_path):
  asked = _plan(tmp_path)
  _finish(asked, "fast", 2)
  units = plan.units(asked, group=False)
  assert _seeds(units, "fast") == [[0, 1], [3, 4]] and all(u["group"] == (len(u["seeds"]) > 1) for u in units)


def test_a_begun_group_stays_together(tmp_path):
  asked = _plan(tmp_path, common=BIG)
  _begin_group(asked, "fast", [1, 2, 3])
  units = plan.units(asked, group=False, processes=64)
  assert sorted(_seeds(units, "fast")) == [[0], [1, 2, 3], [4]]
  assert [u["group"] for u in units if u["arm"] == "fast" and len(u["seeds"]) > 1] == [True]
  _finish(asked, "fast", 2)  # it came apart: one diverged, the others go on alone
  assert sorted(_seeds(plan.units(asked, group=False), "fast")) == [[0], [1], [3], [4]]


def test_a_group_that_was_found_slower_is_no_group(tmp_path):
  asked = _plan(tmp_path, common=BIG)
  _begin_group(asked, "fast", [0, 1, 2, 3, 4], vmapped=False)
  assert _seeds(plan.units(asked, group=False), "fast") == [[seed] for seed in range(5)]


def test_a_directory_of_another_config_is_refused_in_one_line(tmp_path):
  asked = _plan(tmp_path)
  folder = asked.directory / "arms" / "fast"
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(configs.text_of(asked.arms[1].config))
  plan.check_directory(asked)
  with pytest.raises(ConfigError, match="holds another config of arm fast; .*--workdir.*--fresh") as refused:
    plan.check_directory(_plan(tmp_path, common=BIG))
  assert "\n" not in str(refused.value)


def test_setting_aside_loses_nothing(tmp_path):
  asked = _plan(tmp_path)
  plan.set_aside(asked)  # nothing is there
  for round in range(3):
    _finish(asked, "fast", 0, **{"eval/round": round})
    plan.set_aside(asked)
    assert not asked.directory.exists()
  kept = sorted(tmp_path.glob("sweep.earlier-*/arms/fast/seed_0/final.json"))
  assert [json.loads(path.read_text())["eval/round"] for path in kept] == [0, 1, 2]


@pytest.mark.parametrize("varied, says", [
    ({"a": {}, "b": {}}, "arms a and b are the same config"), ({"a": {}, "b": {"optim.lr": 1e-2}}, "the same config"),
    ({"../a": {}}, "a name is of letters"), ({"": {}}, "a name is of letters"), ({"a": {"optim.lrr": 1}}, "arm a: .*'lr'"),
    ({"a": {"optim.lr": "x"}}, "arm a: config.optim.lr='x'")])
def test_arms_that_make_no_comparison_are_one_line(varied, says):
  with pytest.raises(ConfigError, match=says) as refused:
    arms.make(toy.FILE, {}, varied)
  assert "\n" not in str(refused.value)


def test_results_are_what_the_runs_left(tmp_path):
  asked = _plan(tmp_path, range(4))
  _finish(asked, "fast", 0, **{"eval/accuracy": 0.75, "params_sha256": "ab", "recompiled": 0})
  _finish(asked, "fast", 1, "diverged.json")
  out = _finish(asked, "fast", 3, **{"depth/norm": float("nan")})
  (out / "metrics.jsonl").write_text("".join(
      json.dumps({"step": s, "tokens": 128 * s, "loss": 1.0, "tokens_per_s": v}) + "\n" for s, v in ((1, 1), (2, 64e3), (3, 65e6))))
  (asked.directory / "arms" / "fast" / "model_table.csv").write_text("quantity,value,unit\nparameters,1200,\nforward,34,FLOPs\n")
  found = plan.collect(asked)
  fast = found.values["fast"]
  assert fast["eval/loss"] == {0: 0.5, 3: 3.5} and fast["eval/accuracy"] == {0: 0.75}
  assert fast["count/parameters"] == {0: 1200, 1: 1200, 3: 1200} and fast["count/forward_flops"][3] == 34
  assert fast["run/diverged"] == {0: 0, 1: 1, 3: 0} and fast["run/skipped"] == {0: 0, 3: 0}
  assert fast["time/step_ms"] == {3: pytest.approx(2.0)} and not any("sha256" in metric for metric in fast)
  assert found.missing == {"fast": {1: "diverged", 2: "not run"}, "slow": dict.fromkeys(range(4), "not run")}
  assert found.paired(["fast"], range(4)) == [0, 3] and found.paired(["fast", "slow"], range(4)) == []


def test_the_csv_is_the_long_form_of_the_results(tmp_path):
  asked = _plan(tmp_path, range(3))
  for arm in asked.names:
    for seed in range(3):
      _finish(asked, arm, seed, **{"eval/accuracy": 1 / 3 + seed})
  found = plan.collect(asked)
  rows = list(csv.DictReader(io.StringIO((asked.directory / "results.csv").read_text())))
  back = {}
  for row in rows:
    back.setdefault(row["arm"], {}).setdefault(row["metric"], {})[int(row["seed"])] = float(row["value"])
  assert back == found.values and len(rows) == 2 * 3 * 4  # bit for bit
  assert results.as_csv(found) == (asked.directory / "results.csv").read_text()


def test_the_record_of_a_sweep_names_its_arms(tmp_path):
  asked = _plan(tmp_path)
  plan.write(asked, {"match": ""})
  record = json.loads((asked.directory / "sweep.json").read_text())
  assert [arm["name"] for arm in record["arms"]] == asked.names and record["seeds"]["fast"] == list(range(5))
  assert [arm["config_id"] for arm in record["arms"]] == [configs.id_of(arm.config) for arm in asked.arms]
