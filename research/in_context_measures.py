"""What experiments in context learning measure of a trained model, beside its loss: numbers by name.

    in_context/risk                    E (f - w.x_q)^2 over fresh prompts
    in_context/excess                  (risk of f - risk of the algorithm) / risk of the algorithm, on the same prompts
    in_context/sensitivity_cosine, _distance, prediction_difference      of f and the algorithm
    in_context/preconditioner_error    of a single layer: |Gamma - Gamma*| / |Gamma*|
    in_context/anisotropy              of a single layer: |Gamma - tr(Gamma) / d I| / |Gamma|
    in_context/shift_ratio_2, _3       risk of a single layer on 2 and 3 times the covariance over that of answering 0,
                                       shift_gap_2 how far the first is from 1
    construction/gd_error, gd_plus_plus_error   largest error of constructed layers, over 1 to 10 of them
    flow/factor_error                  relative error of both factors after exact descent on the population risk

The algorithm is the best single preconditioned step, or k steps of the best rate for k layers; for responses that
are not linear, the one step of the rate that fits these prompts best.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from layers.in_context import closed_forms, constructions, filters, oracles, population, probes
from layers.in_context import linear_self_attention as lsa
from research.errors import ConfigError
from research.tasks import in_context

PROMPTS = 16_384
LAYERS = 10


def measure(task, program, state) -> dict[str, float]:
  """Returns every number that makes sense for this task and model.

  Args:
    task: an InContextRegression whose prompts have one prediction.
    program: of research/program.py, with a Regressor.
    state: of one trained model.

  Raises:
    ConfigError: a task with a prediction for every x; its readers are others.
  """
  if task.encoding != "concatenated":
    raise ConfigError(f"config.task.encoding={task.encoding!r}: only 'concatenated' prompts are measured here.")
  drawn, tokens = jax.jit(_draw, static_argnums=0)(task, jax.random.fold_in(jax.random.key(task.seed), 7919))
  variables = {"params": state.params, **state.extra}
  predict = lambda tokens: program.model.apply(variables, tokens)[0][:, -1]
  answer_P = np.asarray(jax.jit(predict)(tokens), np.float64)
  slope_PD = np.asarray(jax.jit(functools.partial(probes.sensitivity, predict))(tokens), np.float64)
  mixer, layers = program.config.model.mixer, program.config.model.depth * program.config.model.mixer.get("steps", 1)
  w_PD, risk = algorithm(task, drawn, layers)
  found = against(drawn, answer_P, slope_PD, w_PD, risk)
  if layers == 1:
    found |= of_rule(task, rule(task, program.config.model, state.params))
  if mixer.get("form", "four") == "four":
    found |= constructed(task, tokens, drawn)
  if mixer.get("form", "four") == "two":
    found["flow/factor_error"] = flow_error(task, int(jax.random.bits(state.key)))
  return found


def _draw(task, key):
  drawn = task.draw(jax.random.split(key, PROMPTS))
  return drawn, task.encode(drawn)


def algorithm(task, drawn, layers: int) -> tuple[np.ndarray, float | None]:
  """Returns (weights of the algorithm for these prompts, its risk; None where there is no closed form)."""
  n, d = task.pairs, task.dims
  x_PND, y_PN, target_P = (np.asarray(a, np.float64) for a in (drawn.x_BND, drawn.y_BN, drawn.target_B))
  mean_PD = oracles.averaging(x_PND, y_PN)
  if task.response != "linear":
    guess_P = np.sum(mean_PD * np.asarray(drawn.query_BD), axis=1)
    return np.dot(guess_P, target_P) / np.dot(guess_P, guess_P) * mean_PD, None
  sigma_DD, weight_DD = task.covariances()
  if layers > 1:
    rate = best_rate(oracles.decompose(x_PND, y_PN).l_PD, n, layers, task.noise)
    found = oracles.decompose(x_PND, y_PN)
    return oracles.weights(found, filters.gradient_descent(found.l_PD, n, [rate] * layers)), None
  if task.covariance == "random":
    return closed_forms.random_covariance_gain(n, d) / task.scale**2 * mean_PD, None
  if task.coordinates == "normal":
    gamma_DD = closed_forms.best_preconditioner(sigma_DD, n, task.noise, weight_DD)
    return mean_PD @ gamma_DD.T, closed_forms.risk_of(gamma_DD, sigma_DD, n, task.noise, weight_DD)
  if task.covariance == "isotropic" and task.weights == "normal":
    args = n, d, task.noise, sigma_DD[0, 0], in_context.MOMENTS[task.coordinates][1]
    return closed_forms.one_step_rate(*args) * mean_PD, closed_forms.one_step_risk(*args)
  raise ConfigError("config.task: uniform coordinates have a closed form with isotropic covariance and normal weights.")


def best_rate(l_PD, n: int, steps: int, noise: float = 0.0) -> float:
  """Returns the rate of the lowest risk of so many steps, over prompts with these eigenvalues of X^T X."""
  risk = lambda rate: np.mean(filters.risks(l_PD, filters.gradient_descent(l_PD, n, [rate] * steps), noise))
  top = 2 * n / np.mean(np.max(l_PD, axis=1))
  return float(optimize.minimize_scalar(risk, bounds=(0, top), method="bounded").x)


def best_gd_plus_plus(l_PD, n: int, layers: int, noise: float = 0.0) -> tuple[float, float]:
  """Returns (eta, gamma), shared by so many layers of GD++, of the lowest risk over these prompts."""
  unit = n / np.mean(np.max(l_PD, axis=1))
  def risk(scalars):
    rates, gammas = ([unit * scalar] * layers for scalar in scalars)
    return np.mean(filters.risks(l_PD, filters.gd_plus_plus(l_PD, n, rates, gammas), noise))
  with np.errstate(over="ignore", invalid="ignore"):
    found = optimize.minimize(risk, (1.0, 0.2), method="Nelder-Mead", options=dict(xatol=1e-4, fatol=1e-7))
  return float(unit * found.x[0]), float(unit * found.x[1])


def against(drawn, answer_P, slope_PD, w_PD, risk=None) -> dict[str, float]:
  """Compares a model with an algorithm of weights `w_PD`, on the same prompts."""
  target_P, query_PD = np.asarray(drawn.target_B, np.float64), np.asarray(drawn.query_BD, np.float64)
  other_P = np.sum(w_PD * query_PD, axis=1)
  # Both on the same prompts: their errors are nearly the same number, and so is what sampling does to them.
  gap = np.mean((answer_P - target_P) ** 2 - (other_P - target_P) ** 2)
  risk = probes.squared_difference(other_P, target_P) if risk is None else risk
  return {"in_context/risk": risk + gap, "in_context/excess": gap / risk,
          "in_context/sensitivity_cosine": probes.cosine(slope_PD, w_PD),
          "in_context/sensitivity_distance": probes.distance(slope_PD, w_PD),
          "in_context/prediction_difference": probes.alignment(answer_P, other_P)}


def rule(task, model, params) -> np.ndarray:
  """Returns Gamma of the rule Gamma b / n that a single trained layer applies, from its parameters."""
  (run,), mixer = params["stack"].values(), model.mixer
  form = mixer.get("form", "four")
  pv_DD, kq_DD = lsa.products(run["block_0"]["mixer"], form, task.dims + 1)
  sign = -1.0 if model.get("read_out", "minus_last") == "minus_last" else 1.0
  pairs = task.pairs if form == "four" else 1
  return sign * pairs * float(pv_DD[-1, -1]) * np.asarray(kq_DD, np.float64)[:-1, :-1].T


def of_rule(task, gamma_DD) -> dict[str, float]:
  """Compares a single layer's Gamma with the best one, and says what it costs where the covariance is another."""
  scalar_DD = np.trace(gamma_DD) / task.dims * np.eye(task.dims)
  found = {"in_context/anisotropy": np.linalg.norm(gamma_DD - scalar_DD) / np.linalg.norm(gamma_DD)}
  if task.response != "linear" or task.coordinates != "normal" or task.covariance == "random":
    return found
  sigma_DD, weight_DD = task.covariances()
  best_DD = closed_forms.best_preconditioner(sigma_DD, task.pairs, task.noise, weight_DD)
  found["in_context/preconditioner_error"] = np.linalg.norm(gamma_DD - best_DD) / np.linalg.norm(best_DD)
  for c in (2, 3):
    risk = closed_forms.risk_of(gamma_DD, c * sigma_DD, task.pairs, task.noise, weight_DD)
    found[f"in_context/shift_ratio_{c}"] = risk / np.trace(c * sigma_DD @ weight_DD)
  return found | {"in_context/shift_gap_2": found["in_context/shift_ratio_2"] - 1}


def constructed(task, tokens, drawn) -> dict[str, float]:
  """Returns how far layers with written-down weights are from the algorithms they are, in float32."""
  few = slice(0, 256)
  x_PND, y_PN, query_PD = (np.asarray(a, np.float64)[few] for a in (drawn.x_BND, drawn.y_BN, drawn.query_BD))
  decomposed = oracles.decompose(x_PND, y_PN)
  n, rate = task.pairs, 0.5 * task.pairs / np.max(decomposed.l_PD)
  made = {
      "gd": (constructions.gradient_step(task.dims, n, rate),
             lambda k: filters.gradient_descent(decomposed.l_PD, n, [rate] * k)),
      "gd_plus_plus": (constructions.gd_plus_plus(task.dims, n, rate, 0.3 * rate),
                       lambda k: filters.gd_plus_plus(decomposed.l_PD, n, [rate] * k, [0.3 * rate] * k))}
  found = {}
  for name, (weights, left) in made.items():
    got = np.asarray(_layer_by_layer(tokens[few], *(jnp.float32(weights[k]) for k in ("key", "query", "value", "out"))))
    want = [np.sum(oracles.weights(decomposed, left(k)) * query_PD, axis=1) for k in range(1, LAYERS + 1)]
    found[f"construction/{name}_error"] = np.abs(got - want).max()
  return found


@jax.jit
def _layer_by_layer(tokens_BTD, key_DD, query_DD, value_DD, out_DD):
  """Returns the answers after each of 1 to LAYERS equal layers, [LAYERS, B]."""
  def layer(e_BTD, _):
    e_BTD = e_BTD + lsa.four_matrices(e_BTD, key_DD, query_DD, value_DD, out_DD)
    return e_BTD, -e_BTD[:, -1, -1]
  return jax.lax.scan(layer, tokens_BTD, None, length=LAYERS)[1]


def flow_error(task, seed: int, rate: float = 0.01, steps: int = 20_000) -> float:
  """Returns the larger relative error of the two factors that exact descent reaches, from a drawn start."""
  sigma_DD = task.covariances()[0]
  s, block_DD = population.start(task.dims, 0.3, seed)
  s, block_DD = population.descend(s, block_DD, sigma_DD, task.pairs, rate=rate, steps=steps)
  scalar, want_DD = closed_forms.zhang_limit(sigma_DD, task.pairs)
  return max(abs(s - scalar) / scalar, np.linalg.norm(block_DD - want_DD) / np.linalg.norm(want_DD))
