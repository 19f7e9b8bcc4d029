"""How many seeds a difference needs before a sweep is likely to see it.

Of n paired differences with true mean m and deviation s, T = sqrt(n) mean / deviation follows
the noncentral t distribution with n - 1 degrees of freedom and noncentrality sqrt(n) m / s.
A difference is *found* when its interval lies beyond zero on the side of m, so

    power(n, m, s) = P(T > t_c)      t_c = quantile (1 + level) / 2 of Student's t, n - 1 degrees

and `detectable` is the m at which that is `power`. A gain that must exceed a margin counts
from the margin: to see gain > margin the true gain must be margin + detectable.

The deviation is itself an estimate. The true one of 5 normal values lies between 0.60 and 2.87
times the seen one (95 %), so a number of seeds computed from 5 is an order of magnitude, no
promise; and these are numbers for planning the next sweep, no explanation of the last one.

Reference: Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, chapter 2;
the wrong tail, 1e-7 of the power at n = 5 and power 0.8, is not counted as a finding here.
"""

import bisect
import math
import operator

from scipy import optimize
from scipy import special

MOST = 1000  # seeds


def check_level(level):
  """Raises ValueError unless the level is one that an interval of a few values can have."""
  if not 0.5 <= level <= 0.999:
    raise ValueError(f"level={level} must lie in [0.5, 0.999]; 0.95 is usual.")


def detectable(deviation, n, *, power=0.8, level=0.95) -> float:
  """Returns the smallest |mean| that n seeds find with the given power.

  Args:
    deviation: sample standard deviation of the paired difference, in its unit.
    n: number of seeds.
    power: probability that the interval lies beyond zero on the right side.
    level: level of the two-sided interval.

  Raises:
    ValueError: fewer than 2 seeds, a deviation that is negative or not finite, a power outside
      [0.5, 0.999] or a level outside [0.5, 0.999].
  """
  check_level(level)
  if not 0.5 <= power <= 0.999:
    raise ValueError(f"power={power} must lie in [0.5, 0.999]; 0.8 is usual.")
  if not 0 <= deviation < math.inf:
    raise ValueError(f"deviation={deviation} must be finite and >= 0; leave out seeds that diverged.")
  n = operator.index(n)
  if n < 2:
    raise ValueError(f"n={n} seeds have no deviation, at least 2 are needed; run more seeds.")
  critical = special.stdtrit(n - 1, (1 + level) / 2)
  missing = lambda noncentrality: 1 - special.nctdtr(n - 1, noncentrality, critical) - power
  above = 2 * critical + 2
  while missing(above) < 0:
    above *= 2
  return float(deviation * optimize.brentq(missing, 0.0, above, xtol=1e-12) / math.sqrt(n))


def seeds_to_detect(difference, deviation, *, power=0.8, level=0.95, most=MOST) -> int | None:
  """Returns the fewest seeds, at least 2, that find the difference; None if more than `most`.

  No number of seeds finds a difference of 0, which is None as well.

  Raises:
    ValueError: a difference that is not finite, or what `detectable` refuses.
  """
  if not math.isfinite(difference):
    raise ValueError(f"difference={difference} must be finite; leave out seeds that diverged.")
  detects = lambda n: detectable(deviation, n, power=power, level=level) <= abs(difference)
  numbers = range(2, most + 1)
  # `detectable` falls with n, so False comes before True.
  found = bisect.bisect_left(numbers, True, key=detects)
  return numbers[found] if difference and found < len(numbers) else None


def advice(summary, difference, unit) -> str:
  """Returns one sentence on the seeds that a difference needs, at 80 % power and level 95 %.

  Args:
    summary: of the differences seen; its n and deviation count, not its mean.
    difference: what shall be detected; of a gain with a margin, the part beyond the margin.
    unit: of the difference, such as "nats"; may be empty.
  """
  amount = lambda number: f"{number:.3g} {unit}".rstrip()
  wanted = amount(abs(difference))
  here = f"these {summary.n} detect {amount(detectable(summary.deviation, summary.n))}"
  needed = seeds_to_detect(difference, summary.deviation)
  if not difference:
    return f"no number of seeds would detect {wanted}; {here}"
  if needed is None:
    return f"more than {MOST} seeds would be needed to detect {wanted}; {here}"
  if needed <= summary.n:
    return f"{summary.n} seeds suffice to detect {wanted}; {here}"
  return f"{needed} seeds would detect {wanted}; {here}"
