"""Final metrics of arms under common seeds: means, and what each arm differs by from the first, paired by seed.

A difference is given a word only if its 95 % interval excludes zero and its p value, corrected after Holm
for the number of arms compared in that metric, is below 0.05.
"""

import math
from typing import NamedTuple

from research import statistics

ALPHA = 0.05
LOWER = ("loss", "perplexity", "error", "bits", "nll", "regret")
HIGHER = ("accuracy", "correct", "reward", "score", "auc", "recall", "throughput")


class Mean(NamedTuple):
  """Of one metric of one arm.

  Attributes:
    values: seed -> finite number.
    mean: of them, nan if there are none.
    interval: 95 % t interval, None of fewer than two.
  """

  values: dict[int, float]
  mean: float
  interval: tuple[float, float] | None


class Difference(NamedTuple):
  """Of one arm from another, paired by seed.

  Attributes:
    values: seed -> arm minus other.
    mean: of them, nan if there are none.
    interval: 95 % t interval, None of fewer than two pairs.
    p: corrected after Holm, None where there is no interval.
    word: what may be said of it.
    summary: the statistics behind interval and p, None of fewer than two pairs.
  """

  values: dict[int, float]
  mean: float
  interval: tuple[float, float] | None
  p: float | None
  word: str
  summary: statistics.Summary | None = None


def direction(metric: str, told: str = "") -> str:
  """Returns "lower", "higher" or "": which values of a metric are wanted.

  Args:
    metric: its name.
    told: what a claim says of it, which decides.
  """
  if told in ("lower", "higher"):
    return told
  words = metric.lower().replace("/", "_").split("_")
  return "lower" if set(words) & set(LOWER) else "higher" if set(words) & set(HIGHER) else ""


def means(values: dict[str, dict[int, float]]) -> dict[str, Mean]:
  """Returns arm -> mean of arm -> seed -> number; numbers that are not finite are left out."""
  found = {}
  for arm, of_seed in values.items():
    finite = {seed: value for seed, value in of_seed.items() if math.isfinite(value)}
    mean = math.fsum(finite.values()) / len(finite) if finite else math.nan
    interval = tuple(statistics.summary(list(finite.values())).t) if len(finite) > 1 else None
    found[arm] = Mean(finite, mean, interval)
  return found


def differences(values: dict[str, dict[int, float]], against: str, wanted: str = "") -> dict[str, Difference]:
  """Returns arm -> paired difference from the arm `against`, of all arms but that one.

  Args:
    values: arm -> seed -> number.
    against: an arm.
    wanted: of `direction`.
  """
  other, paired = values.get(against, {}), {}
  for arm, of_seed in values.items():
    if arm != against:
      paired[arm] = {seed: value - other[seed] for seed, value in of_seed.items()
                     if seed in other and math.isfinite(value - other[seed])}
  summaries = {arm: statistics.summary(list(d.values())) for arm, d in paired.items() if len(d) > 1}
  corrected = dict(zip(summaries, statistics.holm([s.p for s in summaries.values()])))
  found = {}
  for arm, of_seed in paired.items():
    if arm in summaries:
      summary = summaries[arm]
      found[arm] = Difference(of_seed, summary.mean, tuple(summary.t), corrected[arm],
                              word(summary.t, corrected[arm], wanted), summary)
    else:
      mean = math.fsum(of_seed.values()) / len(of_seed) if of_seed else math.nan
      found[arm] = Difference(of_seed, mean, None, None, f"{len(of_seed)} pair{'s' * (len(of_seed) != 1)}: no interval")
  return found


def word(interval, p: float, wanted: str) -> str:
  """Returns what may be said of a difference: "better" and "worse" where a direction is wanted, else its sign."""
  if interval.low <= 0 <= interval.high or p >= ALPHA:
    return "no difference seen"
  side = "lower" if interval.high < 0 else "higher"
  return ("better" if side == wanted else "worse") if wanted else side
