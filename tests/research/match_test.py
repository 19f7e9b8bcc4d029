"""Arms brought to one budget, by one field, or refused."""

import pytest

from research import arms
from research import match
from research.errors import ConfigError
from tests.research import toy

COMMON = {"model.channel.hidden": 32}


def _matched(varied, asked, common=COMMON):
  made = arms.make(toy.FILE, common, varied)
  said = []
  return made, match.match(toy.FILE, common, made, asked, said.append), said


@pytest.mark.parametrize("asked, key", [
    ("flops:model.channel.hidden", "model.channel.hidden"),
    ("state:model.mixer.value_dim", "model.mixer.value_dim"), ("tokens", "optim.steps")])
def test_a_matched_arm_costs_what_the_first_one_costs(asked, key):
  wider = {"model.mixer.key_dim": 8}
  slower = {"task.batch_size": 48} if asked == "tokens" else wider
  common = {**COMMON, "model.channel.hidden": 64, "model.mixer.value_dim": 64}
  made, (first, other), said = _matched({"first": {}, "other": slower}, asked, common)
  budget = asked.partition(":")[0]
  assert first == made[0]  # what the others are matched to is left as it is
  want, got = (match._cost(arm.config, budget) for arm in (first, other))
  assert abs(got / want - 1) <= match.TOLERANCE and match._cost(made[1].config, budget) != want
  assert other.overrides.items() >= slower.items() and set(other.overrides) - set(slower) == {key}
  assert other.config == arms.config_of(toy.FILE, {**common, **other.overrides})
  assert len(said) == 2 and all("\n" not in line for line in said)
  if asked == "tokens":
    assert other.config.optim.steps == 20 and got == want


def test_the_width_is_what_changes_unless_told_otherwise():
  _, (_, other), _ = _matched({"first": {"model.channel.hidden": 256}, "other": {"model.channel.hidden": 192}}, "parameters",
                              {"model.mixer.heads": 1, "model.width": 96})
  assert other.config.model.width % match.GRAIN == 0 and other.config.model.width > 96


def test_an_arm_of_the_same_budget_is_left_as_it_is():
  made, found, said = _matched({"first": {}, "other": {"optim.lr": 1e-3}}, "flops")
  assert found == made and said[1].endswith("already")


@pytest.mark.parametrize("varied, asked, says", [
    ({}, "parameter", "--match='parameter' must be one of parameters, flops, state, tokens"),
    ({}, "", "--match='' must be one of"),
    ({"model.channel.hidden": 64}, "parameters:model.chanel.hidden", "config.model.chanel.hidden is not set"),
    ({"model.channel.hidden": 64}, "parameters:model.mixer.name", "is no whole number"),
    ({"model.channel.hidden": 64}, "parameters:model.dropout", "is no whole number"),
    ({"model.width": 64}, "parameters", "config.model.width is what arm other varies"),
    ({"model.depth": 3}, "parameters", "the nearest to")])
def test_what_cannot_be_matched_is_one_line(varied, asked, says):
  with pytest.raises(ConfigError, match=says) as refused:
    _matched({"first": {}, "other": varied or {"optim.lr": 1e-3}}, asked)
  assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cost", [lambda v: 3 * v, lambda v: v * v + 7, lambda v: 12 * v * v + 40 * v],
                         ids=["line", "square", "model"])
def test_the_search_finds_the_nearest_of_all_values(cost):
  for target in (50, 999, 12_345, 10**6):
    for start in (8, 64, 1024):
      found = match._search(cost, start, target, 8, "a", "k")
      assert abs(cost(found) - target) == min(abs(cost(v) - target) for v in range(8, 8 * 2**16, 8) if v <= 4 * found)


def test_values_that_cannot_run_are_stepped_over():
  cost = lambda v: v if v % 24 == 0 else None  # three heads, say
  found = match._search(cost, 48, 1000, 8, "a", "k")
  assert found % 24 == 0 and abs(found - 1000) <= 24
  with pytest.raises(ConfigError, match="arm a runs with no config.k near"):
    match._search(lambda v: None, 48, 1000, 8, "a", "k")
  with pytest.raises(ConfigError, match=f"arm a stays below the budget at config.k={match.LARGEST}"):
    match._search(lambda v: 5, 48, 1000, 8, "a", "k")
