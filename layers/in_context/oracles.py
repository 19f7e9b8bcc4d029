"""What known algorithms predict for given prompts: weights w of yhat = w . x_q, in float64 numpy.

Everything of the form w = g(X^T X) X^T y shares one batched eigendecomposition, see filters.py for the
multipliers R(l) = 1 - l g(l):

    found = decompose(x_PND, y_PN)
    w_PD = weights(found, filters.ridge(found.l_PD, noise))

The nearest neighbours are no weights, and predict at once. Nothing here knows of any model.
"""

from typing import NamedTuple

import numpy as np

from layers.in_context import filters

# Dims: P prompts, N pairs, D inputs.


class Decomposed(NamedTuple):
  """Prompts in the basis of their own X^T X: eigenvalues l_PD, directions u_PDD, b_PD = U^T X^T y, and n."""

  l_PD: np.ndarray
  u_PDD: np.ndarray
  b_PD: np.ndarray
  n: int


def decompose(x_PND, y_PN) -> Decomposed:
  """Returns the eigendecomposition of every prompt, float32 numbers taken to float64 first.

  Raises:
    ValueError: shapes that do not fit, or no pair at all.
  """
  x_PND, y_PN = filters.wide(x_PND), filters.wide(y_PN)
  if x_PND.ndim != 3 or y_PN.shape != x_PND.shape[:2] or 0 in x_PND.shape:
    raise ValueError(f"x of shape {x_PND.shape} and y of shape {y_PN.shape} must be [prompts, n, d] and [prompts, n], "
                     "with n and d at least 1.")
  l_PD, u_PDD = np.linalg.eigh(x_PND.swapaxes(1, 2) @ x_PND)
  # Rounding leaves eigenvalues near 1e-16 where there are none: a pseudo-inverse must not see them.
  l_PD = np.where(l_PD > filters.TINY_EIGENVALUE * l_PD[:, -1:], l_PD, 0)
  moment_PD = np.einsum("pnd,pn->pd", x_PND, y_PN)
  return Decomposed(l_PD, u_PDD, np.einsum("pdj,pd->pj", u_PDD, moment_PD), x_PND.shape[1])


def weights(found: Decomposed, left_PD) -> np.ndarray:
  """Returns w_PD = g(A) b of a filter that leaves `left_PD` of the weights."""
  gain_PD = np.divide(1 - left_PD, found.l_PD, out=np.zeros_like(found.l_PD), where=found.l_PD > 0)
  return np.einsum("pdj,pj->pd", found.u_PDD, gain_PD * found.b_PD)


def averaging(x_PND, y_PN) -> np.ndarray:
  """Returns w_PD = X^T y / n."""
  x_PND = filters.wide(x_PND)
  return np.einsum("pnd,pn->pd", x_PND, filters.wide(y_PN)) / x_PND.shape[1]


def preconditioned(x_PND, y_PN, gamma_DD) -> np.ndarray:
  """Returns w_PD = Gamma X^T y / n."""
  return averaging(x_PND, y_PN) @ filters.wide(gamma_DD).T


def online(x_PND, y_PN, rates_PN) -> np.ndarray:
  """Returns w_PD after one pass of w <- w + rate (y_i - w . x_i) x_i, a pair at a time."""
  x_PND, y_PN, rates_PN = map(filters.wide, (x_PND, y_PN, rates_PN))
  w_PD = np.zeros_like(x_PND[:, 0])
  for i in range(x_PND.shape[1]):
    error_P = y_PN[:, i] - np.sum(w_PD * x_PND[:, i], axis=1)
    w_PD = w_PD + (rates_PN[:, i] * error_P)[:, None] * x_PND[:, i]
  return w_PD


def nearest(x_PND, y_PN, query_PD, k: int = 3) -> np.ndarray:
  """Returns the mean y of the k nearest pairs, of all pairs if there are fewer.

  Raises:
    ValueError: k below 1.
  """
  if k < 1:
    raise ValueError(f"k={k} neighbours must be at least 1.")
  x_PND, y_PN, query_PD = map(filters.wide, (x_PND, y_PN, query_PD))
  away_PN = np.sum((x_PND - query_PD[:, None]) ** 2, axis=2)
  chosen_PK = np.argsort(away_PN, axis=1, kind="stable")[:, :k]
  return np.mean(np.take_along_axis(y_PN, chosen_PK, axis=1), axis=1)
