"""The max-margin problem of layers/in_context/attention_svm.py, solved by non-negative least squares.

    min |w|   subject to   A w >= 1

With E = [A^T; 1^T] and u >= 0 the non-negative least-squares solution of E u = (0, ..., 0, 1), the residual
r = E u - (0, ..., 0, 1) gives w = -r_first / r_last; a residual of zero says that no w fulfils the constraints.

Reference: Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23 (least distance programming).
"""

import numpy as np
from scipy import optimize

# Dims: N prompts, T tokens, D width, C constraints.


def constraints(x_NTD, z_ND, chosen_N) -> np.ndarray:
  """Returns A [C, D * D] with rows (x_chosen - x_t) z^T for every prompt and every other token, in float64.

  Raises:
    ValueError: a choice that is no token.
  """
  x_NTD, z_ND, chosen_N = np.asarray(x_NTD, np.float64), np.asarray(z_ND, np.float64), np.asarray(chosen_N)
  tokens = x_NTD.shape[1]
  if len(chosen_N) != len(x_NTD) or chosen_N.min() < 0 or chosen_N.max() >= tokens:
    raise ValueError(f"chosen={chosen_N.tolist()} must name one of {tokens} tokens for each of {len(x_NTD)} prompts.")
  rows = [np.outer(x[chosen] - x[t], z).ravel() for x, z, chosen in zip(x_NTD, z_ND, chosen_N)
          for t in range(tokens) if t != chosen]
  return np.stack(rows)


def max_margin(rows_CF) -> np.ndarray:
  """Returns the shortest w with A w >= 1.

  Raises:
    ValueError: there is none.
  """
  stacked = np.vstack([rows_CF.T, np.ones(len(rows_CF))])
  goal = np.append(np.zeros(rows_CF.shape[1]), 1.0)
  u_C, size = optimize.nnls(stacked, goal, maxiter=50 * len(rows_CF))
  if size < 1e-9:
    raise ValueError(f"no weights separate the chosen tokens: {len(rows_CF)} constraints in {rows_CF.shape[1]} dimensions "
                     "contradict each other.")
  rest = stacked @ u_C - goal
  return -rest[:-1] / rest[-1]


def correlation(a, b) -> float:
  """Returns <a, b> / (|a| |b|)."""
  a, b = np.ravel(np.asarray(a, np.float64)), np.ravel(np.asarray(b, np.float64))
  return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
