"""What the layers of a decoder compute in context, beside algorithms: numbers by name, and arrays for figures.

    risk/decoder, /<algorithm>    squared error to f at the last point
    risk_over/lasso, /greedy_tree the decoder's risk over that of a fit that knows the family, on `FITTED` prompts, for
                                  sparse functions (the best of five strengths) and trees
    spd/ridge_over_ols            worst over positions of E (f - ridge)^2 / E (f - least squares)^2, of d + 2 pairs or
                                  more, where the second has a mean; below 1 for the answer 0 as well, whence
    spd/ridge_over_others         the same over what is nearest of least squares, averaging, one gradient step of the
                                  best rate, three neighbours and 0
    match/newton_rise             least difference of the best-matching numbers of Newton iterations, layer to layer
    match/gd_doublings            the same of gradient steps, in powers of two
    ilwd/ridge, /least_squares    E |w_f - w|^2 of the weights that answers to fresh queries imply, and
    linear_fit/explained          how much of those answers they explain
    probe/moment, /weights        share of the variance of X^T y and of the Bayes weights that a linear read-out of the
                                  last layer explains on other prompts
    shift/<name>                  risk at the last point of shifted prompts over that of ridge, which is best there, or
                                  of answering 0 where there is no noise or the family is not linear

Arrays, with rows for the layers and the decoder's answer itself as the last one: position/<algorithm> [N] with
position_error/<algorithm>; sime/newton, sime/gd [L + 1, K] cosines of residuals without point 1; simw/* of weights;
grid/newton, grid/gd [K]; probe_by_layer/moment, /weights [L]. Layers are read before the final norm.

References: Fu et al., "Transformers Learn Higher-Order Optimization Methods for In-Context Learning", 2024 (SimE,
SimW); Akyurek et al., "What learning algorithm is in-context learning?", 2023 (SPD, ILWD, probes); Garg et al., 2022.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from layers.in_context import by_position, closed_forms, probes, readouts
from layers.probe import DEPTH
from layers.stack import by_depth
from research import in_context_fits as fits
from research.errors import ConfigError

# Dims: P prompts, N points, D inputs, L layers, F stream width, K numbers of steps, Q queries.

PROMPTS = 4096
FITTED = 256
WEIGHED = 192  # prompts whose weights are asked for, 3 d queries each
LINEAR = ("linear", "sparse")


def measure(task, program, state) -> dict:
  """Returns the numbers and arrays above that make sense for this family of functions.

  Args:
    task: a FunctionClasses.
    program: of research/program.py, with a Regressor that answers at every other token.
    state: of one trained model.

  Raises:
    ConfigError: a model with one answer per prompt.
  """
  if program.config.model.get("read_out", "") != "every_other":
    raise ConfigError("config.model.read_out must be 'every_other': functions are predicted at every x.")
  forward = jax.jit(functools.partial(_forward, program.model))
  variables = {"params": state.params, **state.extra}
  key = jax.random.fold_in(jax.random.key(task.seed), 7919)
  drawn, answer_PN, stream_LPNF = _shown(task, forward, variables, key)
  known = by_position.answers(drawn.x_BND, drawn.y_BN, task.noise)
  found = of_positions(task, drawn, answer_PN, known)
  found |= beside_fits(task, drawn, answer_PN[:, -1])
  if task.family not in LINEAR:
    return found | shifts(task, forward, variables, key)
  layers = read_layers(stream_LPNF, drawn.f_BN)
  layer_answers = [readouts.apply(readout, h)[..., 0] for readout, h in zip(layers, stream_LPNF)]
  found |= matches(drawn.y_BN, np.stack([*layer_answers, answer_PN]), known)
  found |= of_weights(task, forward, variables, jax.random.fold_in(key, 1), layers)
  found |= encoded(task, drawn, stream_LPNF[:, :, -1])
  return found | shifts(task, forward, variables, key)


def _forward(model, variables, tokens):
  """Returns (answers [P, N], stream after every layer at the points [L, P, N, F])."""
  (answer_PN, _), shown = model.apply(variables, tokens, mutable=[DEPTH])
  runs = model.stack(parent=None).runs()
  return answer_PN, by_depth(shown[DEPTH]["stack"], runs, lambda block: block["stream_BTD"][0][:, ::2])


def _shown(task, forward, variables, key, prompts=PROMPTS):
  drawn = jax.jit(lambda key: task.draw(jax.random.split(key, prompts)))(key)
  answer_PN, stream_LPNF = forward(variables, jax.jit(task.encode)(drawn.x_BND, drawn.y_BN))
  return jax.tree.map(lambda a: np.asarray(a, np.float64), (drawn, answer_PN, stream_LPNF))


def of_positions(task, drawn, answer_PN, known) -> dict:
  """Returns risks by position of the decoder and of algorithms, and which of two it is nearer to."""
  N, found = answer_PN.shape[1], {}
  for name, guess_PN in {"decoder": answer_PN, **known}.items():
    if guess_PN.ndim == 2:
      square_PN = (guess_PN - drawn.f_BN) ** 2
      found[f"position/{name}"] = square_PN.mean(axis=0)
      found[f"position_error/{name}"] = square_PN.std(axis=0, ddof=1) / len(square_PN) ** 0.5
      found[f"risk/{name}"] = found[f"position/{name}"][-1]
  infinite = lambda i: i > 0 and np.isinf(closed_forms.least_squares_risk(i, task.dims, task.noise))
  none_N = np.array([infinite(i) for i in range(N)])
  found["position/least_squares"][none_N] = np.inf  # what a sample shows of an infinite mean is chance
  late = [i for i in range(N) if i >= task.dims + 2]
  if task.noise and late and task.family in LINEAR:
    found |= nearness(answer_PN, known | {"one_step": one_step(task, known["averaging"])}, late)
  return found


def beside_fits(task, drawn, answer_P) -> dict:
  """Returns the risk of answers at the last point over that of a fit made for this family, where there is one."""
  few = slice(0, FITTED)
  x_PND, y_PN, f_P = (a[few] for a in (drawn.x_BND, drawn.y_BN, drawn.f_BN[:, -1]))
  pairs, query_PD, error = (x_PND[:, :-1], y_PN[:, :-1]), x_PND[:, -1], lambda guess_P: np.mean((guess_P - f_P) ** 2)
  if task.family == "sparse":
    least = min(error(np.sum(fits.lasso(*pairs, 10.0**-k) * query_PD, axis=1)) for k in range(5))
    return {"risk_over/lasso": error(answer_P[few]) / least}
  if task.family == "decision_tree":
    return {"risk_over/greedy_tree": error(answer_P[few]) / error(fits.greedy_tree(*pairs, query_PD, task.tree_depth))}
  return {}


def one_step(task, averaging_PN):
  """Returns the answers of the best gradient step for isotropic inputs."""
  rate = lambda i: closed_forms.one_step_rate(max(i, 1), task.dims, task.noise, task.x_scale**2)
  return averaging_PN * np.array([rate(i) for i in range(averaging_PN.shape[1])])[None]


def nearness(answer_PN, known, late) -> dict:
  """Returns how near answers are to ridge, beside how near they are to others, at the worst of the positions `late`."""
  apart = {name: np.mean((answer_PN - guess_PN) ** 2, axis=0) for name, guess_PN in known.items() if guess_PN.ndim == 2}
  apart["zero"] = np.mean(answer_PN**2, axis=0)
  other_N = np.min([apart_N for name, apart_N in apart.items() if name != "ridge"], axis=0)
  worst = lambda other_N: np.max(apart["ridge"][late] / np.maximum(other_N[late], 1e-12))
  return {"spd/ridge_over_ols": worst(apart["least_squares"]), "spd/ridge_over_others": worst(other_N),
          **{f"position_spd/{name}": apart_N for name, apart_N in apart.items()}}


def read_layers(stream_LPNF, target_PN) -> list:
  """Returns a read-out per layer, shared by all positions."""
  flat = lambda h_PNF: h_PNF.reshape(-1, h_PNF.shape[-1])
  return [readouts.fit(flat(h_PNF), target_PN.reshape(-1, 1)) for h_PNF in stream_LPNF]


def matches(y_PN, answer_RPN, known) -> dict:
  """Returns likeness of residuals, layer by layer and step by step, and how the best matches move.

  Args:
    y_PN: what was to be predicted.
    answer_RPN: of the layers, and in the last row of the decoder.
    known: of by_position.answers.
  """
  found = {}
  residual_RPN = (answer_RPN - y_PN[None])[..., 1:]
  for name, grid in (("newton", by_position.NEWTON), ("gd", by_position.GRADIENT)):
    other_KPN = (known[name] - y_PN[None])[..., 1:]
    found[f"sime/{name}"] = np.array([[probes.cosine(r_PN, o_PN) for o_PN in other_KPN] for r_PN in residual_RPN])
    found[f"grid/{name}"] = np.array(grid, np.float64)
  best = {name: found[f"grid/{name}"][np.argmax(found[f"sime/{name}"][:-1], axis=1)] for name in ("newton", "gd")}
  if len(answer_RPN) > 2:
    found["match/newton_rise"] = np.min(np.diff(best["newton"]))
    found["match/gd_doublings"] = np.min(np.diff(np.log2(best["gd"])))
  for layer, (newton, gd) in enumerate(zip(best["newton"], best["gd"]), 1):
    found |= {f"match/newton_layer_{layer}": newton, f"match/gd_layer_{layer}": gd}
  return found


def of_weights(task, forward, variables, key, layers) -> dict:
  """Returns likeness and distance of the weights that layers and decoder imply at the last point."""
  Q = 3 * task.dims
  drawn = task.draw(jax.random.split(key, WEIGHED))
  query_PQD = jax.random.normal(jax.random.fold_in(key, 1), (WEIGHED, Q, task.dims)) * np.diag(task.root())[None, None]
  again = lambda part: jnp.repeat(part, Q, axis=0)
  x_BND = again(drawn.x_BND).at[:, -1].set(query_PQD.reshape(-1, task.dims))
  answer_BN, stream_LBNF = forward(variables, task.encode(x_BND, again(drawn.y_BN)))
  guesses = [readouts.apply(readout, h_BF)[:, 0] for readout, h_BF in zip(layers, stream_LBNF[:, :, -1])]
  implied = [probes.implied_weights(query_PQD, np.reshape(guess, (WEIGHED, Q)))
             for guess in [*guesses, np.asarray(answer_BN)[:, -1]]]
  w_RPD = np.stack([w_PD for w_PD, _ in implied])
  other = by_position.weights(np.asarray(drawn.x_BND)[:, :-1], np.asarray(drawn.y_BN)[:, :-1], task.noise)
  found = {f"simw/{name}": np.array([[probes.cosine(w_PD, v_PD) for v_PD in other[name]] for w_PD in w_RPD])
           for name in ("newton", "gd")}
  found |= {f"ilwd/{name}": probes.weight_difference(w_RPD[-1], other[name])
            for name in ("ridge", "least_squares") if name in other}
  return found | {"linear_fit/explained": np.mean(implied[-1][1])}


def encoded(task, drawn, last_LPF) -> dict:
  """Returns how much of X^T y and of the Bayes weights a linear read-out finds at the last point of every layer."""
  x_PND, y_PN = drawn.x_BND[:, :-1], drawn.y_BN[:, :-1]
  w = by_position.weights(x_PND, y_PN, task.noise)
  targets = {"moment": np.einsum("pnd,pn->pd", x_PND, y_PN), "weights": w.get("ridge", w["least_squares"])}
  by_layer = {name: np.array([readouts.explained(h_PF, target_PD) for h_PF in last_LPF])
              for name, target_PD in targets.items()}
  return {f"probe_by_layer/{name}": value for name, value in by_layer.items()} | {
      f"probe/{name}": value[-1] for name, value in by_layer.items()}


def shifts(task, forward, variables, key) -> dict:
  """Returns the risk at the last point of prompts unlike those of training, over that of what is best there."""
  changed = {"x_doubled": dict(x_scale=2 * task.x_scale), "f_doubled": dict(weight_scale=2 * task.weight_scale),
             "skewed": dict(condition=3.0), "half": dict(inputs="half"), "opposite": dict(inputs="opposite"),
             "noisy": dict(noise=task.noise + 1.0), "shorter": dict(pairs=max(1, task.pairs // 2))}
  found = {}
  for name, change in changed.items():
    other = dataclasses.replace(task, **change)
    drawn, answer_PN, _ = _shown(other, forward, variables, key, PROMPTS // 4)
    found[f"shift/{name}"] = np.mean((answer_PN[:, -1] - drawn.f_BN[:, -1]) ** 2) / _least(other, drawn)
  return found


def _least(task, drawn) -> float:
  """Returns the risk at the last point of the Bayes answer, or of 0 where that is not linear or has none."""
  guess_P = 0.0
  if task.family == "linear" and task.noise:
    w = by_position.weights(drawn.x_BND[:, :-1], drawn.y_BN[:, :-1], task.noise / task.weight_scale**2)
    guess_P = np.sum(w["ridge"] * drawn.x_BND[:, -1], axis=1)
  return float(np.mean((guess_P - drawn.f_BN[:, -1]) ** 2))
