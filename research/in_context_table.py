r"""Prints what algorithms reach in context, by formula, by draws and by training: `python -m research.in_context_table`.

Linear regression of d inputs from n pairs with w ~ N(0, I). Every row has the risk E (yhat - w.x_q)^2 in closed form
where there is one, with the mean and standard error over drawn prompts beside it, and last one linear self-attention
layer trained over several seeds, with their mean and standard error. "inf" is a risk that is infinite, or a
standard error that cannot be known from these draws.

    python -m research.in_context_table --d=20 --n=100 --noise=0.5 --prompts=20000
    python -m research.in_context_table --d=10 --n=10 --coordinates=uniform --seeds=5
"""

import argparse
import math
import sys
import time

import numpy as np

from layers.in_context import closed_forms, filters, oracles
from research import exit_codes, flags, in_context_measures
from research.tasks.in_context import MOMENTS


def parser():
  made = flags.Parser(prog="python -m research.in_context_table", description=__doc__.splitlines()[0], allow_abbrev=False,
                      formatter_class=argparse.RawDescriptionHelpFormatter, epilog=__doc__.partition("\n\n")[2])
  add = made.add_argument
  add("--d", type=int, default=10, help="inputs")
  add("--n", type=int, default=20, help="pairs")
  add("--noise", type=float, default=0.0, help="variance of what is added to y")
  add("--coordinates", choices=sorted(MOMENTS), default="normal", help="of x; uniform ones lie in (-1/2, 1/2)")
  add("--prompts", type=int, default=20_000, help="drawn")
  add("--seeds", type=int, default=0, metavar="N", help="layers to train; 0 trains none")
  add("--steps", type=int, default=1500, help="of training")
  return made


def rows(n: int, d: int, noise: float, prompts: int, coordinates: str = "normal") -> list[tuple]:
  """Returns (name, closed form or None, filters.Estimate) for every algorithm."""
  variance, kurtosis = MOMENTS[coordinates]
  closed_forms.check(n, d, noise)
  normal = coordinates == "normal"
  l_PD = filters.wishart_eigenvalues(n, d, prompts) if normal else _uniform(n, d, prompts)
  rate = closed_forms.one_step_rate(n, d, noise, variance, kurtosis)
  weight_PD = np.full_like(l_PD, variance)
  of = lambda left_PD: filters.estimate(filters.risks(l_PD, left_PD, noise, weight_PD))
  descent = lambda rates: of(filters.gradient_descent(l_PD, n, rates))
  plus = lambda k, eta, gamma: of(filters.gd_plus_plus(l_PD, n, [eta] * k, [gamma] * k))
  some_PD = l_PD[:5000]  # rates are found on some of the prompts, and judged on all
  own = lambda k: filters.stable_rates(l_PD, n, k)
  averaging = closed_forms.averaging_risk(n, d, noise) if normal else None
  found = [
      ("zero", variance * d, descent([])),
      ("averaging", averaging, descent([1.0])),
      ("one step, best rate", closed_forms.one_step_risk(n, d, noise, variance, kurtosis), descent([rate])),
      ("two steps of that rate", closed_forms.two_step_risk(rate, n, d, noise) if normal else None, descent([rate] * 2)),
      *((f"{k} steps, best rate", None, descent([in_context_measures.best_rate(some_PD, n, k, noise)] * k))
        for k in (2, 3, 5)),
      *((f"GD++, {k} layers, best", None, plus(k, *in_context_measures.best_gd_plus_plus(some_PD, n, k, noise)))
        for k in (2, 3, 5)),
      *((f"{k} steps of 1 / l_max", None, descent(own(k))) for k in (8, 64)),
      *((f"Newton, {k} iterations", None, of(filters.newton(l_PD, k))) for k in (4, 8, 12)),
      ("least squares", closed_forms.least_squares_risk(n, d, noise) if normal else None,
       filters.least_squares_estimate(l_PD, n, noise, weight_PD))]
  if noise:
    found.append(("ridge = Bayes", None, of(filters.ridge(l_PD, noise))))
  return found


def _uniform(n, d, prompts):
  x_PND = np.random.default_rng(0).uniform(-0.5, 0.5, (prompts, n, d))
  return filters.spectrum(x_PND)[0]


def trained(n: int, d: int, noise: float, coordinates: str, seeds: int, steps: int) -> filters.Estimate:
  """Trains a layer per seed; returns the mean risk and its standard error over seeds, against one step's formula."""
  import jax
  from layers.in_context import prompts
  from layers.in_context.linear_self_attention import LinearSelfAttention
  from research import in_context_training as training
  layer = LinearSelfAttention()
  made = training.train(layer, training.Settings(seed=np.arange(seeds), noise=noise), d=d, n=n, steps=steps,
                        coordinates=coordinates)
  args = n, d, noise, *MOMENTS[coordinates]

  @jax.jit
  def answers(params):
    drawn = prompts.draw(jax.random.split(jax.random.key(10**6), 16_384), prompts.law(d, noise=noise), n=n,
                         coordinates=coordinates)
    tokens = prompts.concatenated(drawn)
    return drawn, jax.vmap(lambda own: training.answers(layer, own, tokens))(params)

  drawn, f_MB = answers(made.params)
  step_B = np.sum(oracles.averaging(drawn.x_BND, drawn.y_BN) * np.asarray(drawn.query_BD), axis=1)
  step_B *= closed_forms.one_step_rate(*args)
  target_B = np.asarray(drawn.target_B, np.float64)
  # The difference to one step on the same prompts, added to its formula: most of the sampling cancels.
  gap_M = np.mean((np.asarray(f_MB) - target_B) ** 2 - (step_B - target_B) ** 2, axis=1)
  risk_M = closed_forms.one_step_risk(*args) + gap_M
  return filters.Estimate(float(risk_M.mean()), float(risk_M.std(ddof=1) / seeds**0.5) if seeds > 1 else math.inf)


def as_text(found: list[tuple]) -> str:
  """Returns the table."""
  lines = [f"{'algorithm':26} {'closed form':>12} {'mean':>12} {'std. error':>11}"]
  for name, formula, estimate in found:
    exact = "" if formula is None else f"{formula:.5g}"
    lines.append(f"{name:26} {exact:>12} {estimate.mean:>12.5g} {estimate.standard_error:>11.2g}")
  return "\n".join(lines)


def main(argv=None) -> int:
  """Runs the command and returns its exit code."""
  begun = time.monotonic()
  try:
    given = parser().parse_args(sys.argv[1:] if argv is None else argv)
    if given.seeds < 0:
      raise ValueError(f"--seeds={given.seeds} must be at least 0.")
    found = rows(given.n, given.d, given.noise, given.prompts, given.coordinates)
    print(f"d={given.d} n={given.n} noise={given.noise:g} {given.coordinates} inputs, {given.prompts} prompts")
    if given.seeds:
      found.append((f"trained layer, {given.seeds} seeds", None, trained(
          given.n, given.d, given.noise, given.coordinates, given.seeds, given.steps)))
    print(as_text(found))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return exit_codes.CONFIG
  print(f"{time.monotonic() - begun:.1f} s")
  return exit_codes.DONE


if __name__ == "__main__":
  sys.exit(main())
