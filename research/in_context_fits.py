"""Baselines of in-context learning that have no formula: the lasso and a greedy tree, fitted prompt by prompt.

The lasso minimises (1 / 2n) |y - X w|^2 + strength |w|_1, without intercept; the tree splits greedily on squared
error. Both come from scikit-learn, in float64.

Reference: Garg et al., "What Can Transformers Learn In-Context? A Case Study of Simple Function Classes", 2022.
"""

import numpy as np
from sklearn import linear_model, tree

from layers.in_context import filters

# Dims: P prompts, N pairs, D inputs.


def lasso(x_PND, y_PN, strength: float) -> np.ndarray:
  """Returns the weights w_PD of the lasso.

  Raises:
    ValueError: a strength that is not above 0.
  """
  if not 0 < strength < np.inf:
    raise ValueError(f"strength={strength} must be above 0 and finite; at 0 take the least squares of oracles.py.")
  fit = linear_model.Lasso(alpha=strength, fit_intercept=False, max_iter=100_000, tol=1e-8)
  return np.stack([fit.fit(x, y).coef_.copy() for x, y in zip(filters.wide(x_PND), filters.wide(y_PN), strict=True)])


def greedy_tree(x_PND, y_PN, query_PD, depth: int = 4) -> np.ndarray:
  """Returns what trees of at most `depth` splits on a path predict for the queries; depth 0 sets no limit.

  Raises:
    ValueError: a depth below 0.
  """
  if depth < 0:
    raise ValueError(f"depth={depth} splits must be at least 0, where 0 sets no limit.")
  guess = lambda x, y, q: tree.DecisionTreeRegressor(max_depth=depth or None, random_state=0).fit(x, y).predict(q)[0]
  prompts = zip(filters.wide(x_PND), filters.wide(y_PN), filters.wide(query_PD)[:, None], strict=True)
  return np.array([guess(*prompt) for prompt in prompts])
