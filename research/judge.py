"""A claim and the numbers of its runs, made into a verdict.

HOLDS, FAILS and INCONCLUSIVE follow the interval of the paired difference (research/statistics.py); what is
counted and not drawn (parameters, an exact identity) is compared as it is. A seed that one arm lacks is
left out of the pairs and said; a claim with too few pairs is INCONCLUSIVE, whatever the others show.
"""

import math
from typing import NamedTuple

import numpy as np

from research import claims, statistics
from research.errors import ConfigError
from research.results import Results
from research.statistics import FAILS, HOLDS, INCONCLUSIVE

BUDGETS = {"parameters": "count/parameters", "flops": "count/flops", "state": "count/state_bytes"}
MATCHED = 0.02  # relative difference of two budgets that count as matched


class Verdict(NamedTuple):
  """What the runs say about one claim.

  Attributes:
    claim: as written.
    verdict: HOLDS, FAILS or INCONCLUSIVE.
    effect: the number that was judged: mean difference, worst value, worst step of a series, ratio or slope.
    interval: 95 % interval of it; None where nothing was drawn.
    unit: of both.
    sentence: what was seen, for people.
    summary: statistics of the paired differences, or None.
    seeds: that counted.
    values: arm -> seed -> metric.
  """

  claim: claims.Claim
  verdict: str
  effect: float
  interval: tuple[float, float] | None
  unit: str
  sentence: str
  summary: statistics.Summary | None
  seeds: list[int]
  values: dict[str, dict[int, float]]


def judge(claim: claims.Claim, results: Results) -> Verdict:
  """Returns the verdict.

  Raises:
    ConfigError: a metric that the runs do not have, or budgets that do not match.
  """
  lost = _lost(claim, results)
  seeds = [s for s in range(claim.seeds) if not any(s in of_arm for of_arm in lost.values())]
  values = {}
  if seeds:
    check_budgets(claim, results)
    values = {arm: dict(zip(seeds, results.of(arm, claim.metric, seeds))) for arm in claim.needs}
  if bad := [f"{arm} seed {s}" for arm, of_seed in values.items() for s in seeds if not math.isfinite(of_seed[s])]:
    return Verdict(claim, INCONCLUSIVE, math.nan, None, "", f"{claim.metric} of {bad[0]} is not finite", None, [], {})
  least = 2 if claim.kind in ("difference", "monotone") else 1
  if len(seeds) < least or (lost and claim.kind in ("threshold", "exact")):
    return Verdict(claim, INCONCLUSIVE, math.nan, None, "", _lacking(lost, len(seeds), claim), None, seeds, values)
  m_AS = np.asarray([[values[arm][s] for s in seeds] for arm in claim.needs])  # arms, seeds
  kinds = {"difference": _difference, "threshold": _threshold, "exact": _exact, "monotone": _monotone,
           "ratio": _ratio}
  verdict, effect, interval, unit, sentence, summary = kinds[claim.kind](claim, m_AS)
  if lost:
    sentence += f"; without {_lacking(lost, len(seeds), claim)}"
  return Verdict(claim, verdict, float(effect), interval, unit, sentence, summary, seeds, values)


def _lost(claim, results) -> dict[str, dict[int, str]]:
  """Returns arm -> seed -> why, of this claim's seeds that have no number; where divergence is counted it is one."""
  counts = lambda why: why != "diverged" or claim.metric != "run/diverged"
  found = {arm: {s: why for s, why in results.missing.get(arm, {}).items() if s < claim.seeds and counts(why)}
           for arm in claim.needs}
  return {arm: seeds for arm, seeds in found.items() if seeds}


def check_budgets(claim, results) -> None:
  """Refuses a comparison whose arms were to have one budget and do not.

  Raises:
    ConfigError: naming the arms, the budgets and the way out.
  """
  if not claim.match:
    return
  metrics = ("count/tokens_per_step", "count/steps") if claim.match == "tokens" else (BUDGETS[claim.match],)
  # An arm that diverged under every seed left no model table.
  counted = [arm for arm in claim.needs if set(metrics) <= results.values[arm].keys()]
  budget = lambda arm: math.prod(next(iter(results.values[arm][metric].values())) for metric in metrics)
  if not counted:
    return
  first, *others = counted
  for arm in others:
    here, there = budget(first), budget(arm)
    if abs(here - there) > MATCHED * max(abs(here), abs(there)):
      raise ConfigError(f"claim {claim.id}: match={claim.match!r}, but {first} has {here:,.0f} and {arm} {there:,.0f}; "
                        f"change the arms (research.sweep --match={claim.match} --dry_run says to what).")


def _lacking(lost, pairs, claim) -> str:
  text = ", ".join(f"{arm} seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} "
                   f"({', '.join(dict.fromkeys(seeds.values()))})" for arm, seeds in lost.items())
  return f"{text or 'no runs'}: {pairs} of {claim.seeds} seeds have a result of every arm"


def _sign(claim) -> float:
  """Turns a difference into a gain: positive is what is claimed."""
  return -1.0 if claim.better == "lower" else 1.0


def _gains(claim, margin, arm_S, against_S):
  """Returns the gain of one arm over another per seed, in percent of the other where the margin is."""
  gain_S = _sign(claim) * (arm_S - against_S)
  if margin.unit != "%":
    return gain_S
  if not np.all(against_S):
    raise ConfigError(f"claim {claim.id}: {claim.metric} compared with is 0 in a run, of which nothing is a percentage; "
                      "give the margin in the metric's unit.")
  return 100 * gain_S / np.abs(against_S)


def _difference(claim, m_AS):
  margin = claims.quantity(claim.margin, "margin", claim.id)
  summary = statistics.summary(_gains(claim, margin, *m_AS))
  rule = statistics.verdict_of_tie if claim.better == "equal" else statistics.verdict_of_gain
  verdict = rule(summary.t, margin.value)
  word = statistics.better_word(summary.t) if claim.better != "equal" else "difference"
  sentence = (f"{claim.arm} {m_AS[0].mean():.4g}, {claim.against} {m_AS[1].mean():.4g}: {word}, "
              f"{summary.mean:+.3g} {margin.unit} [{summary.t.low:+.3g}, {summary.t.high:+.3g}], margin {margin}")
  if verdict == INCONCLUSIVE:
    room = margin.value - abs(summary.mean) if claim.better == "equal" else summary.mean - margin.value
    sentence += f"; {statistics.advice(summary, room, margin.unit)}"
  return verdict, summary.mean, tuple(summary.t), margin.unit, sentence, summary


def _threshold(claim, m_AS):
  bound = claims.quantity(claim.bound, "bound", claim.id)
  sign, values_S = _sign(claim), m_AS[0]
  worst = values_S[np.argmin(sign * values_S)]
  passed = int(np.sum(sign * (values_S - bound.value) > 0))
  side = "above" if sign > 0 else "below"
  sentence = f"{passed} of {len(values_S)} seeds {side} {bound}, the worst {worst:.4g}"
  return (HOLDS if passed == len(values_S) else FAILS), worst, None, bound.unit, sentence, None


def _exact(claim, m_AS):
  bound = claims.quantity(claim.bound, "bound", claim.id)
  error = np.max(np.abs(m_AS[0] - (m_AS[1] if len(m_AS) > 1 else 0.0)))
  return (HOLDS if error <= bound.value else FAILS), error, None, bound.unit, \
      f"largest deviation {error:.3g}, allowed {bound}", None


def _monotone(claim, m_AS):
  margin = claims.quantity(claim.margin, "margin", claim.id)
  steps = [statistics.summary(_gains(claim, margin, later, earlier)) for earlier, later in zip(m_AS, m_AS[1:])]
  verdicts = [statistics.verdict_of_gain(step.t, margin.value) for step in steps]
  # Every step has to hold, which needs no correction for their number; one that fails breaks the order.
  verdict = FAILS if FAILS in verdicts else HOLDS if set(verdicts) == {HOLDS} else INCONCLUSIVE
  worst = int(np.argmin([step.t.low for step in steps]))
  summary = steps[worst]
  order = ", ".join(f"{arm} {values.mean():.4g}" for arm, values in zip(claim.arms, m_AS))
  sentence = (f"{order}; smallest step {claim.arms[worst]} to {claim.arms[worst + 1]}: {summary.mean:+.3g} "
              f"{margin.unit} [{summary.t.low:+.3g}, {summary.t.high:+.3g}]")
  return verdict, summary.mean, tuple(summary.t), margin.unit, sentence, summary


def _ratio(claim, m_AS):
  bound = claims.quantity(claim.bound, "bound", claim.id)
  if np.min(m_AS) <= 0:
    raise ConfigError(f"claim {claim.id}: {claim.metric} is {np.min(m_AS):g} in a run; a ratio or slope needs "
                      "positive numbers.")
  if claim.arms:
    x = np.log(np.asarray(claim.scale, np.float64))
    values_S = np.polyfit(x, np.log(m_AS), 1)[0]
    back, judged, what = (lambda y: y), values_S - bound.value, "slope"
  else:
    # A ratio is compared on the logarithm, where "twice" and "half" are equally far from "equal".
    values_S = np.log(m_AS[0] / m_AS[1])
    back, judged, what = np.exp, values_S - math.log(bound.value), "ratio"
  effect = float(back(np.mean(values_S)))
  counted = claim.metric.startswith("count/") or len(values_S) > 1
  # Counted is what comes out the same in every seed.
  if counted and np.ptp(values_S) <= 1e-12 * max(1.0, np.max(np.abs(values_S))):
    verdict = HOLDS if _sign(claim) * judged[0] > 0 else FAILS
    return verdict, effect, None, bound.unit, f"{what} {effect:.4g}, bound {bound}", None
  if len(judged) < 2:
    return INCONCLUSIVE, effect, None, bound.unit, f"{what} {effect:.4g} of one seed, bound {bound}", None
  summary = statistics.summary(_sign(claim) * judged)
  low, high = sorted(float(back(y)) for y in np.mean(values_S) + np.asarray(summary.t) - summary.mean)
  sentence = f"{what} {effect:.4g} [{low:.4g}, {high:.4g}], bound {bound}"
  return statistics.verdict_of_gain(summary.t, 0.0), effect, (low, high), bound.unit, sentence, summary


def as_record(verdict: Verdict, **more) -> dict:
  """Returns the verdict as JSON can hold it; `more` says where and when."""
  claim, summary = verdict.claim, verdict.summary
  return {
      "id": claim.id, "paper": claim.paper, "year": claim.year, "statement": claim.statement, "kind": claim.kind,
      "metric": claim.metric, "better": claim.better, "arm": claim.arm, "against": claim.against,
      "arms": list(claim.needs), "scale": list(claim.scale), "margin": claim.margin, "bound": claim.bound,
      "paper_value": claim.paper_value, "verdict": verdict.verdict, "effect": _finite(verdict.effect),
      "interval": verdict.interval and list(verdict.interval), "unit": verdict.unit, "sentence": verdict.sentence,
      "p": summary and summary.p, "effect_size": summary and _finite(summary.effect),
      "bootstrap": summary and list(summary.bootstrap), "detectable": summary and summary.detectable,
      "asked_seeds": claim.seeds, "seeds": verdict.seeds,
      "values": {arm: {str(s): v for s, v in of_seed.items()} for arm, of_seed in verdict.values.items()}, **more}


def _finite(value) -> float | None:
  return value if math.isfinite(value) else None
