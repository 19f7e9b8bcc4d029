"""What a paper says, as data: written before the run, judged after it by research.verify.

An experiment file lists what is compared and what is believed, and imports no jax:

    def arms():
      return {"pre": {}, "post": {"model.placement": "post"}}

    def claims():
      return [Claim(id="pre_trains_without_warmup", paper="On Layer Normalization in the Transformer Architecture",
                    year=2020, statement="...", metric="eval/loss", better="lower", arm="pre",
                    against="post", margin="0.05 nats", seeds=5, paper_value="... (Figure 2)")]

Kinds, with m_k the metric of an arm under seed k:

    difference   the mean over seeds of m_k(arm) - m_k(against) is beyond `margin`, on the side that `better`
                 names; better="equal" claims that it is within +-margin
    threshold    m_k(arm) is beyond `bound` in every seed
    exact        |m_k(arm) - m_k(against)|, or |m_k(arm)| without `against`, is at most `bound` in every seed
    monotone     the metric gets better, by more than `margin`, from each of `arms` to the next
    ratio        m_k(arm) / m_k(against) is beyond `bound`; with `arms` and `scale`, the slope of
                 log m_k against log scale is
"""

import dataclasses
import math
import re
from typing import NamedTuple

from research.errors import ConfigError, nearest, shown

KINDS = ("difference", "threshold", "exact", "monotone", "ratio")
BETTER = ("lower", "higher", "equal")


class Quantity(NamedTuple):
  """A number and what it counts; "%" is relative to the value compared with."""

  value: float
  unit: str

  def __str__(self):
    return f"{self.value:g} {self.unit}"


@dataclasses.dataclass(frozen=True)
class Claim:
  """One sentence of a paper, and what would show it.

  Attributes:
    id: short name, unique in its experiment.
    paper: full title.
    year: of the paper.
    statement: what is claimed, in one sentence.
    metric: name as in final.json of a run ("eval/loss", "depth/residual_variance/last", "count/parameters",
      "time/step_ms", or what the experiment's `measure` returns).
    arm, against: the two arms of a difference or ratio.
    arms: the arms of a monotone claim or a slope, in order.
    scale: one number per arm of a slope.
    better: which way the metric of `arm` is claimed to lie.
    margin: of a difference, with its unit: "0.01 nats", "2 %".
    bound: of a threshold, an identity or a ratio, with its unit: "0.95 accuracy", "1.1 slope".
    seeds: how many, from 0.
    paper_value: what the paper reports, and where in it.
    kind: see the file's first lines.
    match: a budget ("parameters", "flops", "state", "tokens") that the arms must agree in, to 2 %.
  """

  id: str
  paper: str
  year: int
  statement: str
  metric: str
  better: str
  arm: str = ""
  against: str = ""
  arms: tuple[str, ...] = ()
  scale: tuple[float, ...] = ()
  margin: str = ""
  bound: str = ""
  seeds: int = 5
  paper_value: str = "not reported"
  kind: str = "difference"
  match: str = ""

  @property
  def needs(self) -> tuple[str, ...]:
    """The arms that have to be run."""
    return self.arms or tuple(filter(None, (self.arm, self.against)))


def quantity(text: str, field: str, claim: str) -> Quantity:
  """Returns what "0.01 nats" says.

  Raises:
    ConfigError: it is not a finite number followed by a unit.
  """
  # Possessive: a number without a unit must not give up its exponent as one.
  found = re.fullmatch(r"\s*([-+0-9.eE]++)\s*([^\s0-9.][^\n]{0,30})", text if isinstance(text, str) else "")
  try:
    value = float(found[1]) if found else math.nan
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise ConfigError(f"claim {claim}: {field}={shown(text)} must be a number and its unit, "
                      "as in '0.01 nats', '0.9 accuracy' or '2 %'.")
  return Quantity(value, found[2].strip())


def check(claims, arms: dict) -> None:
  """Refuses claims that could not be judged.

  Raises:
    ConfigError: what is wrong with which field, and what would be right.
  """
  seen = set()
  for claim in claims:
    at = f"claim {claim.id}:"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", claim.id) or claim.id in seen:
      raise ConfigError(f"{at} the id must be new, of letters, digits, '.', '_' and '-'.")
    seen.add(claim.id)
    for field, known in (("kind", KINDS), ("better", BETTER), ("match", ("", "parameters", "flops", "state", "tokens"))):
      if getattr(claim, field) not in known:
        raise ConfigError(f"{at} {field}={shown(getattr(claim, field))} is unknown; "
                          f"{nearest(getattr(claim, field), [k for k in known if k])}")
    _check_arms(claim, arms, at)
    if claim.better == "equal" and claim.kind != "difference":
      raise ConfigError(f"{at} better='equal' is for kind='difference'; an identity is kind='exact' with a bound.")
    needed, other = ("margin", "bound") if claim.kind in ("difference", "monotone") else ("bound", "margin")
    if getattr(claim, other):
      raise ConfigError(f"{at} kind={claim.kind!r} takes {needed}, not {other}.")
    least = quantity(getattr(claim, needed), needed, claim.id)
    if least.value < 0 and claim.kind in ("difference", "monotone", "exact"):
      raise ConfigError(f"{at} {needed}={str(least)!r} must be at least 0.")
    if least.unit == "%" and needed == "bound":
      raise ConfigError(f"{at} bound={str(least)!r}: a bound is in the metric's own unit; '%' is for margins.")
    if least.value <= 0 and claim.kind == "ratio" and claim.arm:
      raise ConfigError(f"{at} bound={str(least)!r} of a ratio must be above 0; equal arms have the ratio 1.")
    paired = claim.kind in ("difference", "monotone") or claim.kind == "ratio" and not _counted(claim)
    if claim.seeds < (2 if paired else 1):
      raise ConfigError(f"{at} seeds={claim.seeds} must be at least {2 if paired else 1}; "
                        "an interval needs two values or more, and five are usual.")


def _counted(claim) -> bool:
  """Whether the metric is counted, and so the same for every seed."""
  return claim.metric.startswith("count/")


def _check_arms(claim, arms, at):
  series = claim.kind == "monotone" or claim.kind == "ratio" and not claim.arm
  if series and (len(claim.arms) < 2 or claim.arm or claim.against):
    raise ConfigError(f"{at} kind={claim.kind!r} takes arms=(...) of two or more, and neither arm nor against.")
  if not series and (not claim.arm or claim.arms):
    raise ConfigError(f"{at} kind={claim.kind!r} takes arm, not arms.")
  if claim.kind in ("difference", "ratio") and not series and not claim.against:
    raise ConfigError(f"{at} kind={claim.kind!r} compares two arms: set against.")
  if claim.kind == "threshold" and claim.against:
    raise ConfigError(f"{at} a threshold is of one arm: leave out against.")
  slope = series and claim.kind == "ratio"
  if slope and (len(claim.scale) != len(claim.arms) or not all(0 < s < math.inf for s in claim.scale)
                or len(set(claim.scale)) < 2):
    raise ConfigError(f"{at} a slope takes scale=(...), one positive number for each of its {len(claim.arms)} arms, "
                      "not all the same.")
  if claim.scale and not slope:
    raise ConfigError(f"{at} scale is of a slope: kind='ratio' with arms=(...).")
  if len(set(claim.needs)) < len(claim.needs):
    raise ConfigError(f"{at} compares {', '.join(claim.needs)}; an arm is not compared with itself.")
  for arm in claim.needs:
    if arm not in arms:
      raise ConfigError(f"{at} there is no arm {shown(arm)}; {nearest(arm, arms)}")
