"""Weights of linear self-attention that are an algorithm, written down instead of trained.

    one step of gradient descent    W_K = W_Q = diag(1_d, 0),  W_V = [0 0; w_0^T -1],  P = diag(0_d, eta / n)
    one layer of GD++               W_V = diag(1_d, -1),  P = diag(-gamma / n 1_d, eta / n)
    copy                            after it, token x_i of x_1, y_1, x_2, y_2, ... holds y_i as well

Applied k times the first is k steps from 0, because the y-slot of a pair holds its residual. The copy layer is
one half of an induction head: the position of x_i asks for the position behind it.

Reference: von Oswald et al., "Transformers learn in-context by gradient descent", 2023.
"""

import numpy as np

# Dims: D = d + 1 width of a token, T tokens.


def _sizes(d, n):
  if d < 1 or n < 1:
    raise ValueError(f"d={d} inputs and n={n} pairs must both be at least 1.")


def gradient_step(d: int, n: int, eta: float, start_d=None) -> dict[str, np.ndarray]:
  """Returns W_K, W_Q, W_V and P of one step of rate eta on (1 / 2n) sum (w.x - y)^2.

  Args:
    d, n: inputs and pairs.
    eta: rate.
    start_d: w_0, weights before the step; None is 0.
  """
  _sizes(d, n)
  on_x = np.diag(np.append(np.ones(d), 0.0))
  value = np.zeros((d + 1, d + 1))
  value[d] = np.append(np.zeros(d) if start_d is None else start_d, -1.0)
  out = np.zeros((d + 1, d + 1))
  out[d, d] = eta / n
  return dict(key=on_x, query=on_x, value=value, out=out)


def gd_plus_plus(d: int, n: int, eta: float, gamma: float) -> dict[str, np.ndarray]:
  """Returns W_K, W_Q, W_V and P of one layer of GD++: a gradient step, and x <- x - gamma S x."""
  _sizes(d, n)
  on_x = np.diag(np.append(np.ones(d), 0.0))
  out = np.diag(np.append(np.full(d, -gamma / n), eta / n))
  return dict(key=on_x, query=on_x, value=np.diag(np.append(np.ones(d), -1.0)), out=out)


def kernels(weights: dict[str, np.ndarray]) -> dict:
  """Returns them as the parameters of a LinearSelfAttention of form "four"."""
  return {name: {"kernel": matrix.T.astype(np.float32)} for name, matrix in weights.items()}


def copy_targets(d: int, tokens: int) -> dict[str, np.ndarray]:
  """Returns W_K, W_Q, W_V and P that copy every y_i to its x_i, of tokens (x or 0, y or 0, one-hot position).

  Args:
    d: inputs.
    tokens: T of the sequence x_1, y_1, ..., x_q; T is odd, and a token has d + 1 + T numbers.

  Raises:
    ValueError: an even number of tokens, which would end in a y.
  """
  if d < 1 or tokens < 3 or tokens % 2 == 0:
    raise ValueError(f"d={d} must be at least 1 and tokens={tokens} odd and at least 3: x and y in turn, then a query.")
  width = d + 1 + tokens
  query, position = np.zeros((tokens, width)), np.zeros((tokens, width))
  position[:, d + 1:] = np.eye(tokens)
  for at in range(0, tokens - 1, 2):
    query[at + 1, d + 1 + at] = 1.0
  value = np.zeros((1, width))
  value[0, d] = 1.0
  return dict(key=position, query=query, value=value, out=value.T)
