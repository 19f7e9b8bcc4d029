"""How alike two in-context learners are: predictions, residuals, implied weights, gradients in the query.

    squared difference   E (f - g)^2                                        Akyurek et al., SPD
    weight difference    E |w_f - w_g|^2, w the linear fit of f(D, .)       Akyurek et al., ILWD
    alignment            E |f - g|                                          von Oswald et al.
    sensitivity          cosine and distance of df/dx_q and dg/dx_q         von Oswald et al.
    residual similarity  E cos(f - y, g - y) over the positions of a prompt  Fu et al., SimE; of weights SimW
    reach                |d out_k / d in_j| of a layer for j = k, k + 1 and others   von Oswald et al., copying

References: Akyurek et al., "What learning algorithm is in-context learning? Investigations with linear models",
2023; von Oswald et al., "Transformers learn in-context by gradient descent", 2023; Fu et al., "Transformers Learn
Higher-Order Optimization Methods for In-Context Learning", 2024.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Dims: P prompts, N positions or pairs, M fresh inputs, D inputs, A algorithms.


def squared_difference(f_P, g_P) -> float:
  """Returns E (f - g)^2."""
  return float(np.mean(np.square(np.asarray(f_P, np.float64) - g_P)))


def alignment(f_P, g_P) -> float:
  """Returns E |f - g|."""
  return float(np.mean(np.abs(np.asarray(f_P, np.float64) - g_P)))


def implied_weights(x_PMD, f_PM) -> tuple[np.ndarray, np.ndarray]:
  """Fits f = w . x on fresh inputs of every prompt; returns (w_PD, how much of f's square is explained, per prompt).

  Raises:
    ValueError: fewer inputs than dimensions, which any f would fit.
  """
  x_PMD, f_PM = np.asarray(x_PMD, np.float64), np.asarray(f_PM, np.float64)
  if x_PMD.shape[1] < x_PMD.shape[2]:
    raise ValueError(f"M={x_PMD.shape[1]} inputs must be at least d={x_PMD.shape[2]} to fit weights.")
  w_PD = np.einsum("pdm,pm->pd", np.linalg.pinv(x_PMD), f_PM)
  rest_P = np.sum((f_PM - np.einsum("pmd,pd->pm", x_PMD, w_PD)) ** 2, axis=1)
  return w_PD, 1 - rest_P / np.maximum(np.sum(f_PM**2, axis=1), 1e-300)


def weight_difference(w_PD, v_PD) -> float:
  """Returns E |w - v|^2; for linear predictors and isotropic queries this is their squared difference."""
  return float(np.mean(np.sum(np.square(np.asarray(w_PD, np.float64) - v_PD), axis=1)))


def cosine(a_PN, b_PN) -> float:
  """Returns E cos(a, b) over the rows: SimE of residuals, SimW of weights, or of sensitivities."""
  a_PN, b_PN = np.asarray(a_PN, np.float64), np.asarray(b_PN, np.float64)
  sizes_P = np.linalg.norm(a_PN, axis=1) * np.linalg.norm(b_PN, axis=1)
  return float(np.mean(np.sum(a_PN * b_PN, axis=1) / np.maximum(sizes_P, 1e-300)))


def distance(a_PN, b_PN) -> float:
  """Returns E |a - b| over the rows."""
  return float(np.mean(np.linalg.norm(np.asarray(a_PN, np.float64) - b_PN, axis=1)))


def sensitivity(predict, tokens_BTD):
  """Returns d prediction / d x_q of concatenated tokens, [B, D - 1].

  Args:
    predict: tokens -> [B]; rows must not meet.
    tokens_BTD: (x, y) tokens whose last one is the query.
  """
  return jax.grad(lambda tokens: jnp.sum(predict(tokens)))(tokens_BTD)[:, -1, :-1]


def reached(layer, tokens_BTD) -> np.ndarray:
  """Returns |d out_k / d in_j| [T, T] of tokens k and j, mean over prompts.

  Args:
    layer: tokens [1, T, D] -> tokens; rows must not meet.
    tokens_BTD: of prompts.
  """
  slopes = jax.vmap(jax.jacrev(lambda e_TD: layer(e_TD[None])[0]))(tokens_BTD)
  return np.mean(np.sqrt(np.sum(np.square(np.asarray(slopes, np.float64)), axis=(2, 4))), axis=0)


def reach(layer, tokens_BTD) -> tuple[float, float, float]:
  """Returns how much the x tokens 0, 2, ... before the last read of themselves, of the y behind them, and of others.

  A layer that has learned to copy y_i to x_i, the first half of an induction head, has the second number above the third.

  Args:
    layer: tokens [1, T, D] -> tokens; rows must not meet.
    tokens_BTD: x_1, y_1, x_2, ..., x_q.

  Raises:
    ValueError: fewer than two pairs, where a token has no others.
  """
  T = tokens_BTD.shape[1]
  if T < 5 or T % 2 == 0:
    raise ValueError(f"T={T} tokens must be odd and at least 5: x and y in turn, then a query.")
  at = np.arange(0, T - 1, 2)
  return apart(reached(layer, tokens_BTD), at, at + 1)


def apart(size_TT, at, partner) -> tuple[float, float, float]:
  """Returns means over the tokens `at` of what they read of themselves, of their partners, and of each other token."""
  own, other = size_TT[at, at], size_TT[at, partner]
  return float(own.mean()), float(other.mean()), float((size_TT[at].sum(1) - own - other).mean() / (len(size_TT) - 2))


def best_match(residual_PN, candidates_APN) -> tuple[int, list[float]]:
  """Returns (index of the algorithm whose residuals are most alike, all similarities)."""
  alike = [cosine(residual_PN, other_PN) for other_PN in candidates_APN]
  return int(np.argmax(alike)), alike


def product_distance(one, other) -> float:
  """Returns how far two layers (W_PV, W_KQ) are apart, relative to the second, where only A (x) B is identified.

  A layer does not change under A -> c A, B -> B / c, so the Kronecker products are compared, without forming them.
  """
  (a, b), (c, d) = ([np.asarray(m, np.float64) for m in pair] for pair in (one, other))
  size = np.sum(c * c) * np.sum(d * d)
  square = np.sum(a * a) * np.sum(b * b) - 2 * np.sum(a * c) * np.sum(b * d) + size
  return float((max(square, 0.0) / size) ** 0.5)
