"""Risks of all predictors of the form w = g(X^T X) X^T y from eigenvalues alone, in float64.

With l the eigenvalues of A = X^T X, n pairs and t = l / n, a predictor is told by what it leaves of the
weights, R(l) = 1 - l g(l):

    gradient descent   prod_k (1 - eta_k t)                     on (1 / 2n) sum of squares, from 0
    ridge              s / (l + s)
    least squares      1 if l = 0 else 0                        of least norm
    Newton             (1 - a l^2)^(2^k)                        M_0 = a A, M <- 2 M - M A M
    GD++               R <- R (1 - eta t D^2), D <- D (1 - gamma t D^2)

    risk = E_X sum_j c_j [ R_j^2 + noise (1 - R_j)^2 / l_j ],   c_j = u_j^T Sigma u_j, 1 if Sigma = I

w, e and x_q are averaged exactly, only X is drawn. `noise` is a variance; weights are w ~ N(0, I).

References: von Oswald et al., "Transformers learn in-context by gradient descent", 2023 (GD++); Fu et al.,
"Transformers Learn Higher-Order Optimization Methods for In-Context Learning", 2024 (Newton).
"""

import math
from typing import NamedTuple

import numpy as np

from layers.in_context import closed_forms

# Dims: P prompts, N pairs, D inputs, K steps.

TINY_EIGENVALUE = 1e-12  # of the largest one of a prompt: what counts as zero
LARGEST_SHARE = 0.05  # of a sum that one prompt may have before the mean counts as unknown


class Estimate(NamedTuple):
  """A mean over prompts; an infinite standard error says that the mean is none to rely on."""

  mean: float
  standard_error: float


def wide(x) -> np.ndarray:
  """Returns real numbers in float64, whatever floats they came in.

  Raises:
    ValueError: complex numbers, text, or something not finite.
  """
  x = np.asarray(x)
  if x.dtype.kind not in "fiub":
    raise ValueError(f"dtype={x.dtype} must be of real numbers; they are computed with in float64.")
  x = x.astype(np.float64)
  if not np.all(np.isfinite(x)):
    raise ValueError(f"{np.sum(~np.isfinite(x))} of {x.size} numbers are not finite.")
  return x


def wishart_eigenvalues(n: int, d: int, prompts: int, seed: int = 0) -> np.ndarray:
  """Draws the eigenvalues l_PD of X^T X for standard normal X, without X: by Bartlett's triangular factor."""
  closed_forms.check(n, d)
  if prompts < 2:
    raise ValueError(f"prompts={prompts} must be at least 2; a standard error needs two.")
  draw, small, large = np.random.default_rng(seed), min(n, d), max(n, d)
  factor_PRR = np.zeros((prompts, small, small))
  rows, columns = np.tril_indices(small, -1)
  factor_PRR[:, rows, columns] = draw.standard_normal((prompts, len(rows)))
  on = np.arange(small)
  factor_PRR[:, on, on] = np.sqrt(draw.chisquare(large - on, (prompts, small)))
  l_PR = np.linalg.eigvalsh(factor_PRR @ factor_PRR.swapaxes(1, 2))
  return np.concatenate([np.zeros((prompts, d - small)), np.maximum(l_PR, 0)], axis=1)


def spectrum(x_PND, sigma_DD=None) -> tuple[np.ndarray, np.ndarray]:
  """Returns (l_PD, c_PD) of given inputs by one batched eigh; c is what an eigendirection weighs in the risk."""
  x_PND = wide(x_PND)
  l_PD, u_PDD = np.linalg.eigh(x_PND.swapaxes(1, 2) @ x_PND)
  l_PD = np.where(l_PD > TINY_EIGENVALUE * l_PD[:, -1:], l_PD, 0)
  if sigma_DD is None:
    return l_PD, np.ones_like(l_PD)
  sigma_DD = closed_forms.positive("sigma", sigma_DD)
  return l_PD, np.einsum("pdj,de,pej->pj", u_PDD, sigma_DD, u_PDD)


def gradient_descent(l_PD, n: int, rates) -> np.ndarray:
  """Returns R after one step per entry of `rates`.

  Args:
    l_PD: eigenvalues of X^T X.
    n: pairs.
    rates: [K] for all prompts, or [K, P] with a rate for each; k times one global rate is [eta] * k.
  """
  left_PD = np.ones_like(wide(l_PD))
  for rate in wide(rates):
    left_PD = left_PD * (1 - np.reshape(rate, (-1, 1)) * l_PD / n)
  return left_PD


def stable_rates(l_PD, n: int, steps: int) -> np.ndarray:
  """Returns the rates [K, P] of `steps` steps of n / l_max each, the largest that no prompt diverges under."""
  return np.broadcast_to(n / np.max(wide(l_PD), axis=1), (steps, len(l_PD)))


def ridge(l_PD, strength: float) -> np.ndarray:
  """Returns R of (A + strength I)^-1 b; with strength = noise this is the Bayes predictor.

  Raises:
    ValueError: a strength that is not above 0: that limit is `least_squares`.
  """
  if not 0 < strength < math.inf:
    raise ValueError(f"strength={strength} must be above 0 and finite; at 0 take least_squares.")
  return strength / (wide(l_PD) + strength)


def least_squares(l_PD) -> np.ndarray:
  """Returns R of the pseudo-inverse."""
  return (wide(l_PD) == 0).astype(np.float64)


def newton(l_PD, steps: int, scale=None) -> np.ndarray:
  """Returns R of `steps` Newton iterations for the inverse of A from scale A; None is 1 / |A A^T|_F of each prompt."""
  l_PD = wide(l_PD)
  scale = 1 / np.sqrt(np.sum(l_PD**4, axis=1)) if scale is None else wide(scale)
  return (1 - np.reshape(scale, (-1, 1)) * l_PD**2) ** (2**steps)


def gd_plus_plus(l_PD, n: int, rates, gammas) -> np.ndarray:
  """Returns R of GD++ with one rate and one gamma per layer."""
  t_PD = wide(l_PD) / n
  left_PD, inputs_PD = np.ones_like(t_PD), np.ones_like(t_PD)
  for rate, gamma in zip(wide(rates), wide(gammas), strict=True):
    square_PD = t_PD * inputs_PD**2
    left_PD, inputs_PD = left_PD * (1 - rate * square_PD), inputs_PD * (1 - gamma * square_PD)
  return left_PD


def risks(l_PD, left_PD, noise: float = 0.0, weight_PD=None) -> np.ndarray:
  """Returns the risk of every prompt given its inputs, for the multiplier R `left_PD`."""
  closed_forms.check(1, 1, noise)
  learned_PD = np.divide((1 - left_PD) ** 2, l_PD, out=np.zeros_like(l_PD), where=l_PD > 0)
  each_PD = left_PD**2 + noise * learned_PD
  return np.sum(each_PD if weight_PD is None else weight_PD * each_PD, axis=1)


def estimate(risk_P) -> Estimate:
  """Returns mean and standard error; where one prompt makes the mean, its standard error is infinite."""
  risk_P = np.asarray(risk_P, np.float64)
  mean = float(np.mean(risk_P))
  if not math.isfinite(mean) or np.max(risk_P) > LARGEST_SHARE * max(np.sum(risk_P), 1e-300) and len(risk_P) >= 200:
    return Estimate(mean, math.inf)
  return Estimate(mean, float(np.std(risk_P, ddof=1) / len(risk_P) ** 0.5))


def least_squares_estimate(l_PD, n: int, noise: float = 0.0, weight_PD=None) -> Estimate:
  """Returns the risk of least squares: infinite where its mean is, of unknown error where its variance is."""
  l_PD = wide(l_PD)
  d = l_PD.shape[1]
  if math.isinf(closed_forms.least_squares_risk(n, d, noise)):
    return Estimate(math.inf, math.inf)
  found = estimate(risks(l_PD, least_squares(l_PD), noise, weight_PD))
  return found._replace(standard_error=math.inf) if noise and abs(n - d) <= 3 else found
