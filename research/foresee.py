"""Looks, before hours are spent, whether the runs will have what the claims ask for."""

from research import config as configs
from research import count, model_table, results
from research import program as programs
from research.errors import ConfigError, nearest, shown
from research.judge import check_budgets
from research.step import OWN


def check(plan, claims) -> None:
  """Traces the arms that matter, computes nothing.

  Raises:
    ConfigError: a metric that no run will have, or budgets that do not match.
  """
  arms = {arm.name: arm for arm in plan.arms}
  module = configs.module_of(plan.spec)
  known = {}  # arm -> names: a layer may sow numbers that the layers of other arms have not
  for claim in claims:
    if claim.match:
      check_budgets(claim, _budgets(claim, arms))
    if claim.metric.startswith("eval/") or not hasattr(module, "measure"):
      arm = claim.needs[0]
      if arm not in known:
        known[arm] = _metrics(programs.make(arms[arm].config))
      if claim.metric not in known[arm] and not claim.metric.startswith("depth/"):
        raise ConfigError(f"claim {claim.id}: metric {shown(claim.metric)} is not what a run of {arm} has; "
                          f"{nearest(claim.metric, known[arm])}")


def _metrics(program) -> set[str]:
  """Returns the names in final.json of a run, in its model table and its times."""
  evaluated = [f"eval/{name}" for name in program.abstract.sums if name not in OWN]
  return ({*evaluated, *(f"{name}_at_{n}x" for name in evaluated for n in program.config.train.lengths)}
          | set(results.COUNTED.values()) | set(results.MEASURED))


def _budgets(claim, arms) -> results.Results:
  """Returns the budgets of a claim's arms as if they had been run."""
  values = {}
  for name in claim.needs:
    program = programs.make(arms[name].config)
    costs = {"count/tokens_per_step": program.tokens_per_step, "count/steps": program.config.optim.steps,
             "count/parameters": count.size(program.abstract.params), "count/state_bytes": count.state_bytes(program.model)}
    if claim.match == "flops":
      rows = {row: value for row, value, _ in model_table.rows(program)}
      costs["count/flops"] = rows["forward and backward"]
    values[name] = {metric: {0: float(cost)} for metric, cost in costs.items()}
  return results.Results(values, {})
