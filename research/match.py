"""Arms of one budget: changes one width-like setting of every arm until it costs what the first one costs.

    --match=parameters                  by model.width
    --match=flops:model.channel.hidden  forward and backward operations, by that field
    --match=state:model.mixer.key_dim   bytes of decoding state per sequence
    --match=tokens                      tokens seen in training, by optim.steps
"""

from research import count, model_table
from research import program as programs
from research.arms import Arm, config_of
from research.errors import ConfigError, shown

BUDGETS = ("parameters", "flops", "state", "tokens")
TOLERANCE = 0.02  # relative; research.judge refuses a claim beyond it
LARGEST = 1 << 20
GRAIN = 8  # steps of a width: heads divide it, and vectors fill


def match(spec: str, common: dict, arms: list[Arm], asked: str, say) -> list[Arm]:
  """Returns the arms with one more override each, where theirs differed from the first arm's budget.

  Args:
    spec, common: as for research.arms.make.
    arms: the first one is what the others are matched to.
    asked: BUDGET or BUDGET:KEY.
    say: is told what was chosen.

  Raises:
    ConfigError: an unknown budget or key, or no value of the key comes within 2 %.
  """
  budget, _, key = asked.partition(":")
  if budget not in BUDGETS:
    raise ConfigError(f"--match={shown(asked)} must be one of {', '.join(BUDGETS)}, or BUDGET:KEY "
                      "as in flops:model.channel.hidden.")
  key = key or ("optim.steps" if budget == "tokens" else "model.width")
  target = _cost(arms[0].config, budget)
  if not target:
    raise ConfigError(f"--match={budget}: arm {arms[0].name} has none; match another of {', '.join(BUDGETS)}.")
  say(f"{arms[0].name}: {target:,.0f} {budget}, what the others are matched to")
  return [arms[0], *(_matched(spec, common, arm, budget, key, target, say) for arm in arms[1:])]


def _matched(spec, common, arm, budget, key, target, say):
  if key in arm.overrides:
    raise ConfigError(f"--match: config.{key} is what arm {arm.name} varies; match by another field, as in "
                      f"--match={budget}:KEY.")
  def with_value(value):
    config = config_of(spec, {**common, **arm.overrides, key: value})
    return config, _cost(config, budget)

  now = _cost(arm.config, budget)
  if abs(now / target - 1) <= TOLERANCE / 10:
    say(f"{arm.name}: {now:,.0f} {budget} already")
    return arm
  start = _leaf(arm.config, key)
  grain = 1 if key == "optim.steps" else GRAIN
  if (budget, key) == ("tokens", "optim.steps"):
    value = max(1, round(start * target / now))
  else:
    value = _search(lambda v: _try(with_value, v), start, target, grain, arm.name, key)
  config, cost = with_value(value)
  if abs(cost / target - 1) > TOLERANCE:
    raise ConfigError(f"--match: arm {arm.name} has {cost:,.0f} {budget} at config.{key}={value}, the nearest to "
                      f"{target:,.0f} in steps of {grain}; match by another field, as in --match={budget}:KEY.")
  say(f"{arm.name}: config.{key}={value} gives {cost:,.0f} {budget} ({cost / target - 1:+.2%}), {start} had {now:,.0f}")
  return Arm(arm.name, {**arm.overrides, key: value}, config)


def _search(cost, start, target, grain, name, key):
  """Returns the multiple of `grain` whose cost is nearest to the target; costs rise with the value."""
  known = {}

  def at(n):  # cost of n grains; a value that cannot run (heads do not divide it) borrows its neighbour's
    for near in (n, n + 1, n + 2, n + 3):
      if near not in known:
        known[near] = cost(near * grain)
      if known[near] is not None:
        return known[near]
    raise ConfigError(f"--match: arm {name} runs with no config.{key} near {n * grain}; match by another field.")

  low, high = 1, max(2, start // grain)
  while at(high) < target:
    low, high = high, 2 * high
    if high * grain > LARGEST:
      raise ConfigError(f"--match: arm {name} stays below the budget at config.{key}={LARGEST}; "
                        "it does not depend on that field enough.")
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if at(middle) < target else (low, middle)
  at(low), at(high)
  return grain * min((n for n, c in known.items() if c is not None), key=lambda n: abs(known[n] - target))


def _try(with_value, value):
  try:
    return with_value(value)[1]
  except ConfigError:
    return None


def _leaf(config, key):
  node = config
  for part in key.split("."):
    node = node[part] if part in node else None
    if node is None:
      raise ConfigError(f"--match: config.{key} is not set in the experiment file; set it there, or match another.")
  if type(node) is not int:
    raise ConfigError(f"--match: config.{key}={shown(node)} is no whole number.")
  return node


def _cost(config, budget) -> float:
  if budget == "tokens":
    return config.optim.steps * programs.make(config).tokens_per_step
  program = programs.make(config)
  if budget == "parameters":
    return count.size(program.abstract.params)
  if budget == "state":
    return count.state_bytes(program.model)
  return next(value for name, value, _ in model_table.rows(program) if name == "forward and backward")
