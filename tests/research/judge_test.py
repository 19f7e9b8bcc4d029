"""From hand-made results to verdicts: every kind, every sign, and what is never said."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from research import claims
from research import judge
from research import statistics
from research.errors import ConfigError
from research.results import Results
from research.statistics import FAILS, HOLDS, INCONCLUSIVE

METRIC = "eval/loss"


def claim(**changes):
  return claims.Claim(**(dict(id="c", paper="p", year=2020, statement="s", metric=METRIC, better="lower", arm="a",
                              against="b", margin="0 nats", seeds=5) | changes))


def results(missing=None, counted=None, metric=METRIC, **arms):
  """Returns results of arms given as one number per seed."""
  missing = missing or {}
  values = {}
  for arm, numbers in arms.items():
    found = {s: float(x) for s, x in enumerate(numbers) if s not in missing.get(arm, {})}
    values[arm] = {metric: found, **{m: {0: x} for m, x in (counted or {}).get(arm, {}).items()}}
  return Results(values, missing)


def verdict(numbers=None, missing=None, counted=None, **changes):
  asked = claim(**changes)
  claims.check([asked], {arm: {} for arm in asked.needs})
  return judge.judge(asked, results(missing, counted, asked.metric, **numbers))


STEPS = np.asarray([0.0, 0.01, -0.01, 0.02, -0.02])


def _pair(gap, spread=1.0):
  """Returns arms whose paired differences have the mean `gap`; what their seeds share is large."""
  shared = np.asarray([3.0, 1.0, 2.0, 5.0, 4.0])
  return {"a": shared + gap + spread * STEPS, "b": shared}


@pytest.mark.parametrize("better, gap, margin, word", [
    ("lower", -0.5, 0.0, HOLDS), ("lower", 0.5, 0.0, FAILS), ("higher", 0.5, 0.0, HOLDS), ("higher", -0.5, 0.0, FAILS),
    ("lower", -0.5, 0.4, HOLDS), ("lower", -0.5, 0.6, INCONCLUSIVE), ("lower", 0.001, 0.0, INCONCLUSIVE),
    ("higher", 0.001, 0.0, INCONCLUSIVE), ("equal", 0.001, 0.1, HOLDS), ("equal", 0.5, 0.1, FAILS),
    ("equal", -0.5, 0.1, FAILS), ("equal", 0.1, 0.1, INCONCLUSIVE)])
def test_a_difference(better, gap, margin, word):
  found = verdict(_pair(gap), better=better, margin=f"{margin} nats")
  sign = -1 if better == "lower" else 1
  assert found.verdict == word and found.unit == "nats" and found.seeds == [0, 1, 2, 3, 4]
  assert found.effect == pytest.approx(sign * gap) and found.interval[0] < found.effect < found.interval[1]
  assert ("seeds" in found.sentence) == (word == INCONCLUSIVE)  # how many would do


def test_a_difference_is_the_t_interval_of_the_paired_differences():
  draw = np.random.default_rng(0)
  for n in range(200):
    a, b = draw.standard_normal((2, draw.integers(2, 9))) + draw.standard_normal()
    better, margin = ("lower", "higher", "equal")[n % 3], draw.choice([0.0, 0.1, 1.0])
    gain = b - a if better == "lower" else a - b
    low, high = stats.t.interval(0.95, len(a) - 1, gain.mean(), stats.sem(gain))
    rule = statistics.verdict_of_tie if better == "equal" else statistics.verdict_of_gain
    found = verdict({"a": a, "b": b}, better=better, margin=f"{margin} nats", seeds=len(a))
    np.testing.assert_allclose(found.interval, (low, high), rtol=1e-9)
    assert found.verdict == rule(statistics.Interval(low, high), margin)


def test_better_is_never_said_of_an_interval_that_crosses_zero():
  draw, seen = np.random.default_rng(1), set()
  for n in range(300):
    numbers = dict(zip("ab", draw.standard_normal((2, draw.integers(2, 6))) + draw.normal(0, 2, (2, 1))))
    found = verdict(numbers, better=("lower", "higher")[n % 2], seeds=len(numbers["a"]))
    low, high = found.interval
    word = "better" if low > 0 else "worse" if high < 0 else "no difference seen"
    assert all((other in found.sentence) == (other == word) for other in ("better", "worse", "no difference seen"))
    seen.add(word)
  assert len(seen) == 3


def test_the_order_of_seeds_says_nothing():
  draw = np.random.default_rng(2)
  for kind in ({}, dict(kind="ratio", margin="", bound="1.1 times")):
    a, b = np.exp(draw.standard_normal((2, 5)))
    order = draw.permutation(5)
    one, other = verdict({"a": a, "b": b}, **kind), verdict({"a": a[order], "b": b[order]}, **kind)
    np.testing.assert_allclose((one.effect, *one.interval), (other.effect, *other.interval), rtol=1e-12)
    assert one.verdict == other.verdict


def test_arms_that_change_places_change_the_sign():
  for seed in range(50):
    numbers = dict(zip("ab", np.random.default_rng(seed).standard_normal((2, 4))))
    one, other = verdict(numbers, seeds=4), verdict(numbers, seeds=4, arm="b", against="a")
    np.testing.assert_allclose((one.effect, *one.interval), (-other.effect, *-np.asarray(other.interval)[::-1]), rtol=1e-9)
    np.testing.assert_allclose(verdict(numbers, seeds=4, better="higher").effect, other.effect)
    assert {one.verdict, other.verdict} in ({HOLDS, FAILS}, {INCONCLUSIVE})


def test_a_margin_in_percent_is_of_what_is_compared_with():
  shared = np.asarray([3.0, 1.0, 2.0, 5.0, 4.0])
  for scale in (1.0, 1e-6, -1.0):  # three percent, of whatever
    found = verdict({"a": scale * shared - 0.03 * abs(scale) * shared * (1 + STEPS), "b": scale * shared}, margin="2 %")
    assert found.verdict == HOLDS and found.effect == pytest.approx(3) and found.unit == "%"
  assert verdict({"a": shared * (0.99 + 0.01 * STEPS), "b": shared}, margin="2 %").verdict == INCONCLUSIVE
  with pytest.raises(ConfigError, match="claim c: eval/loss compared with is 0 in a run"):
    verdict({"a": shared, "b": shared * 0}, margin="2 %")


def test_arms_that_do_the_same_are_a_tie_and_no_gain():
  same = {"a": STEPS + 1, "b": STEPS + 1}
  assert verdict(same, better="equal").verdict == HOLDS
  assert verdict(same).verdict == INCONCLUSIVE and verdict(same).effect == 0
  assert judge.as_record(verdict(same))["effect_size"] == 0


@pytest.mark.parametrize("better, bound, word, worst", [
    ("higher", 0.9, HOLDS, 0.91), ("higher", 0.95, FAILS, 0.91), ("higher", 0.91, FAILS, 0.91),
    ("lower", 1.0, HOLDS, 0.99), ("lower", 0.95, FAILS, 0.99), ("lower", 0.5, FAILS, 0.99)])
def test_a_threshold_is_of_every_seed(better, bound, word, worst):
  found = verdict({"a": [0.95, 0.91, 0.99]}, kind="threshold", against="", margin="", bound=f"{bound} accuracy",
                  better=better, seeds=3)
  assert (found.verdict, found.effect, found.interval) == (word, worst, None)
  assert f"{bound:g} accuracy" in found.sentence and f"the worst {worst}" in found.sentence


@pytest.mark.parametrize("numbers, bound, word, error", [
    ({"a": [1.0, 2.0], "b": [1.0, 2.0]}, 0, HOLDS, 0), ({"a": [1.0, 2.0], "b": [1.0, 2.5]}, 0.5, HOLDS, 0.5),
    ({"a": [1.0, 2.0], "b": [1.0, 2.5]}, 0.4, FAILS, 0.5), ({"a": [1e-7, -3e-7]}, 1e-6, HOLDS, 3e-7),
    ({"a": [1e-7, -3e-6]}, 1e-6, FAILS, 3e-6)])
def test_an_identity_is_of_every_seed(numbers, bound, word, error):
  found = verdict(numbers, kind="exact", against="b" if "b" in numbers else "", margin="", bound=f"{bound} nats",
                  seeds=2)
  assert (found.verdict, found.effect) == (word, error)


@pytest.mark.parametrize("levels, word, worst", [
    ((3.0, 2.0, 1.0), HOLDS, 1.0), ((3.0, 2.0, 2.5), FAILS, -0.5), ((3.0, 2.0, 1.999), INCONCLUSIVE, 0.001),
    ((1.0, 2.0, 3.0), FAILS, -1.0)])
def test_a_series_holds_by_its_smallest_step(levels, word, worst):
  wobble = np.stack([STEPS, np.roll(STEPS, 1), np.roll(STEPS, 3)])
  numbers = dict(zip("abc", np.asarray(levels)[:, None] + wobble))
  found = verdict(numbers, kind="monotone", arm="", against="", arms=("a", "b", "c"))
  assert found.verdict == word and found.effect == pytest.approx(worst)
  up = verdict(numbers, kind="monotone", arm="", against="", arms=("c", "b", "a"), better="higher")
  assert up.verdict == word


@pytest.mark.parametrize("better, factor, bound, word", [
    ("higher", 2.0, 1.5, HOLDS), ("higher", 2.0, 3.0, FAILS), ("lower", 2.0, 3.0, HOLDS), ("lower", 2.0, 1.5, FAILS),
    ("higher", 2.0, 2.0, INCONCLUSIVE), ("lower", 0.5, 0.9, HOLDS)])
def test_a_ratio_is_compared_on_the_logarithm(better, factor, bound, word):
  shared = np.asarray([3.0, 1.0, 2.0, 5.0, 4.0])
  found = verdict({"a": shared * factor * np.exp(STEPS), "b": shared}, kind="ratio", margin="", bound=f"{bound} times",
                  better=better)
  half = stats.t.ppf(0.975, 4) * stats.sem(STEPS)
  assert found.verdict == word and found.effect == pytest.approx(factor)
  np.testing.assert_allclose(found.interval, factor * np.exp([-half, half]), rtol=1e-9)


def test_a_slope_is_the_least_squares_line_of_the_logarithms():
  draw, scale = np.random.default_rng(3), (8.0, 16.0, 64.0)
  numbers = np.asarray(scale)[:, None]**-0.5 * np.exp(0.02 * draw.standard_normal((3, 5)))
  slopes = [np.polyfit(np.log(scale), np.log(column), 1)[0] for column in numbers.T]
  ask = lambda better, bound: verdict(dict(zip("abc", numbers)), kind="ratio", arm="", against="", margin="",
                                      arms=("a", "b", "c"), scale=scale, better=better, bound=f"{bound} slope")
  found = ask("lower", -0.4)
  assert found.verdict == HOLDS and found.effect == pytest.approx(np.mean(slopes))
  np.testing.assert_allclose(found.interval, stats.t.interval(0.95, 4, np.mean(slopes), stats.sem(slopes)), rtol=1e-9)
  assert ask("higher", -0.4).verdict == FAILS and ask("higher", -0.6).verdict == HOLDS
  assert ask("lower", np.mean(slopes)).verdict == INCONCLUSIVE


@pytest.mark.parametrize("better, bound, word", [("lower", 0.9, HOLDS), ("lower", 0.5, FAILS), ("higher", 0.7, HOLDS)])
def test_what_is_counted_needs_one_seed_and_no_interval(better, bound, word):
  found = verdict({"a": [750.0], "b": [1000.0]}, kind="ratio", metric="count/parameters", margin="",
                  bound=f"{bound} times", better=better, seeds=1)
  assert (found.verdict, found.interval) == (word, None) and found.effect == pytest.approx(0.75)


def test_a_ratio_of_what_is_drawn_needs_two_seeds():
  lost = {"a": {1: "diverged"}}
  found = verdict({"a": [1.0, 1.0], "b": [2.0, 2.0]}, lost, kind="ratio", margin="", bound="0.9 times", seeds=2)
  assert found.verdict == INCONCLUSIVE and found.interval is None
  with pytest.raises(ConfigError, match="eval/loss is -1 in a run; a ratio or slope needs positive numbers"):
    verdict({"a": [-1.0, 1.0], "b": [2.0, 2.0]}, kind="ratio", margin="", bound="0.9 times", seeds=2)


def test_lost_seeds_are_left_out_and_said():
  numbers = _pair(-0.5)
  found = verdict(numbers, {"a": {1: "diverged"}, "b": {3: "not run"}})
  assert found.verdict == HOLDS and found.seeds == [0, 2, 4] and found.values["b"].keys() == {0, 2, 4}
  assert "a seed 1 (diverged)" in found.sentence and "b seed 3 (not run)" in found.sentence
  assert "3 of 5 seeds" in found.sentence
  few = verdict(numbers, {"a": {0: "diverged", 1: "diverged", 2: "diverged", 4: "not run"}})
  assert few.verdict == INCONCLUSIVE and math.isnan(few.effect) and "a seeds 0, 1, 2, 4 (diverged, not run)" in few.sentence
  none = verdict(numbers, {"a": dict.fromkeys(range(5), "diverged")})
  assert none.verdict == INCONCLUSIVE and none.seeds == [] and "0 of 5 seeds" in none.sentence


@pytest.mark.parametrize("changes", [dict(kind="threshold", against="", margin="", bound="9 nats"),
                                     dict(kind="exact", against="", margin="", bound="9 nats")])
def test_what_every_seed_must_show_is_open_while_one_is_lost(changes):
  numbers = {"a": np.ones(5)}
  assert verdict(numbers, **changes).verdict == HOLDS
  assert verdict(numbers, {"a": {2: "diverged"}}, **changes).verdict == INCONCLUSIVE
  # Another claim may have asked for more seeds of the arm than this one.
  assert verdict(numbers, {"a": {4: "diverged"}}, seeds=3, **changes).verdict == HOLDS


def _diverging(of_arm, missing):
  values = {arm: {"run/diverged": dict(enumerate(map(float, flags)))} for arm, flags in of_arm.items()}
  return Results(values, missing)


def test_divergence_itself_can_be_claimed():
  lost = {"a": dict.fromkeys(range(3), "diverged")}
  every = claim(metric="run/diverged", kind="threshold", against="", margin="", bound="0.5 runs", better="higher", seeds=3)
  found = judge.judge(every, _diverging({"a": [1, 1, 1]}, lost))
  assert found.verdict == HOLDS and "diverged)" not in found.sentence
  assert judge.judge(every, _diverging({"a": [1, 0, 1]}, {"a": {0: "diverged", 2: "diverged"}})).verdict == FAILS
  more = claim(metric="run/diverged", better="higher", margin="0.5 runs", seeds=3)
  found = judge.judge(more, _diverging({"a": [1, 1, 1], "b": [0, 0, 0]}, lost))
  assert found.verdict == HOLDS and found.effect == 1 and found.seeds == [0, 1, 2]
  unrun = {"a": {0: "diverged", 1: "diverged", 2: "not run"}}
  assert judge.judge(every, _diverging({"a": [1, 1]}, unrun)).verdict == INCONCLUSIVE


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("changes", [{}, dict(better="equal"), dict(kind="exact", margin="", bound="1 nats"),
                                     dict(kind="ratio", margin="", bound="1 times")])
def test_a_number_that_is_not_finite_decides_nothing(bad, changes):
  numbers = _pair(-0.5)
  numbers["b"][3] = bad
  found = verdict(numbers, **changes)
  assert found.verdict == INCONCLUSIVE and "eval/loss of b seed 3 is not finite" in found.sentence
  json.dumps(judge.as_record(found), allow_nan=False)


def test_an_unknown_metric_names_the_nearest():
  with pytest.raises(ConfigError, match="metric 'eval/los': arm a has no such number; did you mean 'eval/loss'"):
    judge.judge(claim(metric="eval/los"), results(**_pair(0.1)))


def test_a_metric_that_older_seeds_lack_is_one_line():
  found = results(**_pair(0.1))
  del found.values["b"][METRIC][0]
  with pytest.raises(ConfigError, match="arm b has it, but not under seed 0"):
    judge.judge(claim(), found)


@pytest.mark.parametrize("match, metric", [("parameters", "count/parameters"), ("flops", "count/flops"),
                                           ("state", "count/state_bytes"), ("tokens", "count/steps")])
def test_budgets_agree_to_two_percent_or_are_refused(match, metric):
  for cost, agrees in ((1000, True), (1019, True), (981, True), (1030, False), (970, False)):
    counted = {arm: {metric: x, "count/tokens_per_step": 64.0} for arm, x in (("a", float(cost)), ("b", 1000.0))}
    if agrees:
      assert verdict(_pair(-0.5), counted=counted, match=match).verdict == HOLDS
    else:
      with pytest.raises(ConfigError, match=rf"match='{match}', but a has .* and b .*--match={match}") as refused:
        verdict(_pair(-0.5), counted=counted, match=match)
      assert "\n" not in str(refused.value)


def test_an_arm_that_only_diverged_has_no_budget_to_compare():
  found = _diverging({"a": [1, 1], "b": [0, 0]}, {"a": dict.fromkeys(range(2), "diverged")})
  found.values["b"]["count/parameters"] = {0: 5.0}
  asked = claim(metric="run/diverged", better="higher", margin="0.5 runs", seeds=2, match="parameters")
  assert judge.judge(asked, found).verdict == HOLDS


@pytest.mark.parametrize("changes, numbers", [
    ({}, _pair(-0.5)), ({}, _pair(0.0)), ({}, _pair(-0.5, spread=0.0)), (dict(better="equal"), _pair(0.3)),
    (dict(kind="threshold", against="", margin="", bound="1 nats"), {"a": np.ones(5)}),
    (dict(kind="monotone", arm="", against="", arms=("a", "b")), _pair(-0.1)),
    (dict(kind="ratio", margin="", bound="1 times"), _pair(-0.1)),
    (dict(kind="ratio", margin="", bound="1 times", metric="count/flops"), {"a": np.ones(5), "b": np.ones(5)})])
def test_a_record_survives_json(changes, numbers):
  found = verdict(numbers, **changes)
  record = judge.as_record(found, minutes=1.5)
  assert json.loads(json.dumps(record, allow_nan=False)) == record
  assert record["verdict"] == found.verdict and record["minutes"] == 1.5 and record["asked_seeds"] == 5
  assert record["values"]["a"]["3"] == numbers["a"][3]
