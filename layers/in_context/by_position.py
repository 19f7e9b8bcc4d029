"""What algorithms answer at every point of a prompt, from the points before it, in float64 numpy.

    f_i = w(x_1, y_1, ..., x_{i-1}, y_{i-1}) . x_i          0 at the first point, where nothing is known

    averaging            w = X^T y / n
    least squares        of least norm
    ridge                strength = noise: the Bayes answer of a linear function with w ~ N(0, I)
    k gradient steps     of rate `RATE` on half the sum of squares, from 0 (Fu et al.: no 1 / n); of rate 1 / l_max for
                         prompts that this would diverge on
    k Newton iterations  M_0 = A / |A A^T|_F, M <- 2 M - M A M, w = M X^T y
    neighbours           mean y of the three nearest points

References: Garg et al., "What Can Transformers Learn In-Context?", 2022; Fu et al., "Transformers Learn Higher-Order
Optimization Methods for In-Context Learning", 2024.
"""

import numpy as np

from layers.in_context import filters, oracles

# Dims: P prompts, N points, D inputs, A algorithms.

RATE = 0.02
NEWTON = tuple(range(13))
GRADIENT = tuple(2**k for k in range(11))


def weights(x_PND, y_PN, noise: float = 0.0) -> dict[str, np.ndarray]:
  """Returns name -> w of whole prompts: [P, D], and [A, P, D] of "newton" and "gd" over their numbers of steps.

  Args:
    x_PND, y_PN: pairs.
    noise: variance on y; without any there is no "ridge".
  """
  found = oracles.decompose(x_PND, y_PN)
  t_PD = found.l_PD * np.minimum(RATE, 1 / np.max(found.l_PD, axis=1, keepdims=True))
  of = lambda left_PD: oracles.weights(found, left_PD)
  made = {"averaging": oracles.averaging(x_PND, y_PN), "least_squares": of(filters.least_squares(found.l_PD)),
          "newton": np.stack([of(filters.newton(found.l_PD, k)) for k in NEWTON]),
          "gd": np.stack([of((1 - t_PD) ** k) for k in GRADIENT])}
  return made | ({"ridge": of(filters.ridge(found.l_PD, noise))} if noise else {})


def answers(x_PND, y_PN, noise: float = 0.0) -> dict[str, np.ndarray]:
  """Returns name -> answers [P, N], and [A, P, N] of "newton" and "gd"; "neighbours" beside those of `weights`.

  Raises:
    ValueError: fewer than two points, where nothing would be answered.
  """
  P, N, _ = x_PND.shape
  if N < 2:
    raise ValueError(f"N={N} points must be at least 2: at the first nothing is known.")
  columns = []
  for i in range(1, N):
    w = weights(x_PND[:, :i], y_PN[:, :i], noise)
    at = {name: np.einsum("...pd,pd->...p", w_PD, filters.wide(x_PND[:, i])) for name, w_PD in w.items()}
    columns.append(at | {"neighbours": oracles.nearest(x_PND[:, :i], y_PN[:, :i], x_PND[:, i])})
  first = {name: np.zeros_like(answer) for name, answer in columns[0].items()}
  return {name: np.stack([column[name] for column in [first, *columns]], axis=-1) for name in first}
