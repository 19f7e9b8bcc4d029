"""Expected risks of in-context linear regression that can be written down, in float64.

A prompt is n pairs (x_i, y_i) and a query x_q: x ~ N(0, Sigma), w ~ N(0, W), y = w.x + e,
e ~ N(0, noise), all independent. Risk is E (yhat - w.x_q)^2, the target without its noise.
`noise` is a variance. With S = X^T X / n and b = X^T y, and I for Sigma and W unless given:

    zero            0                     d
    averaging       b / n                 d (d + 1 + noise) / n
    one step        (eta / n) b           d (d + 1 + noise) / (n + d + 1 + noise),  eta = n / (n + d + 1 + noise)
    least squares   X^+ y                 noise d / (n - d - 1)  or  d - n + noise n / (d - n - 1);  infinite between
    Gamma           Gamma b / n           tr(Sigma W) - 2 tr(Sigma Gamma Sigma W) + tr(Sigma Gamma M Gamma^T)
                                          M = (1 + 1/n) Sigma W Sigma + (tr(Sigma W) + noise) Sigma / n

References: Mahankali, Hashimoto and Ma, "One Step of Gradient Descent is Provably the Optimal In-Context Learner
with One Layer of Linear Self-Attention", 2024; Zhang, Frei and Bartlett, "Trained Transformers Learn Linear
Models In-Context", 2024 (zhang_*). The others follow from the moments of Wishart matrices.
"""

import math

import numpy as np

# Dims: D inputs. n pairs, d inputs as numbers.


def check(n: int, d: int, noise: float = 0.0) -> None:
  """Refuses a prompt that is none.

  Raises:
    ValueError: n or d below 1, or a noise that is negative or not finite.
  """
  if n < 1 or d < 1:
    raise ValueError(f"n={n} pairs and d={d} inputs must both be at least 1.")
  if not 0 <= noise < math.inf:
    raise ValueError(f"noise={noise} must be a variance, at least 0 and finite.")


def positive(name: str, matrix) -> np.ndarray:
  """Returns a symmetric matrix in float64.

  Raises:
    ValueError: it is not square, symmetric, finite and positive definite.
  """
  wide = np.asarray(matrix, np.float64)
  if wide.ndim != 2 or wide.shape[0] != wide.shape[1] or not np.all(np.isfinite(wide)):
    raise ValueError(f"{name} of shape {wide.shape} must be a square matrix of finite numbers.")
  if not np.allclose(wide, wide.T, rtol=1e-6, atol=1e-9 * np.abs(wide).max()):
    raise ValueError(f"{name} must be symmetric; it differs from its transpose by {np.abs(wide - wide.T).max():.3g}.")
  least, most = np.linalg.eigvalsh(wide)[[0, -1]]
  if least <= 1e-13 * most:
    raise ValueError(f"{name} is singular: eigenvalues from {least:.3g} to {most:.3g}; it must be positive definite.")
  return wide


def averaging_risk(n: int, d: int, noise: float = 0.0) -> float:
  """Returns the risk of b / n."""
  check(n, d, noise)
  return d * (d + 1 + noise) / n


def one_step_rate(n: int, d: int, noise: float = 0.0, variance: float = 1.0, kurtosis: float = 3.0) -> float:
  """Returns the best eta of (eta / n) b, for inputs of independent coordinates.

  Args:
    n, d, noise: of the prompt.
    variance, kurtosis: of a coordinate: 3 if normal, 1.8 if uniform, where the variance is a^2 / 3 on [-a, a].
  """
  check(n, d, noise)
  if not variance > 0 or not kurtosis >= 1:
    raise ValueError(f"variance={variance} must be above 0 and kurtosis={kurtosis} at least 1.")
  return n / (variance * (n + d + kurtosis - 2) + noise)


def one_step_risk(n: int, d: int, noise: float = 0.0, variance: float = 1.0, kurtosis: float = 3.0) -> float:
  """Returns the risk at `one_step_rate`."""
  return variance * d * (1 - variance * one_step_rate(n, d, noise, variance, kurtosis))


def least_squares_risk(n: int, d: int, noise: float = 0.0) -> float:
  """Returns the risk of the least-squares fit, of least norm if n < d; infinite where |n - d| <= 1 and noise > 0."""
  check(n, d, noise)
  if noise and abs(n - d) <= 1:
    return math.inf
  if not noise:
    return float(max(d - n, 0))
  return noise * d / (n - d - 1) if n > d else d - n + noise * n / (d - n - 1)


def wishart_moments(n: int, d: int) -> tuple[float, float, float, float]:
  """Returns E tr S, E tr S^2, E tr S^3, E tr S^4 for standard normal inputs."""
  check(n, d)
  third = n**2 + 3 * n * d + d**2 + 3 * n + 3 * d + 4
  fourth = n**3 + 6 * n**2 * d + 6 * n * d**2 + d**3 + 6 * n**2 + 17 * n * d + 6 * d**2 + 21 * n + 21 * d + 20
  return float(d), d * (n + d + 1) / n, d * third / n**2, d * fourth / n**3


def two_step_risk(eta: float, n: int, d: int, noise: float = 0.0) -> float:
  """Returns the risk of two steps of rate eta on (1 / 2n) sum of squares."""
  check(n, d, noise)
  m1, m2, m3, m4 = wishart_moments(n, d)
  bias = d - 4 * eta * m1 + 6 * eta**2 * m2 - 4 * eta**3 * m3 + eta**4 * m4
  return bias + noise / n * (4 * eta**2 * m1 - 4 * eta**3 * m2 + eta**4 * m3)


def second_moment(sigma_DD, n: int, noise: float = 0.0, weight_DD=None) -> np.ndarray:
  """Returns M = E b b^T / n^2, of the table above."""
  sigma_DD = positive("sigma", sigma_DD)
  check(n, len(sigma_DD), noise)
  weight_DD = np.eye(len(sigma_DD)) if weight_DD is None else positive("weight", weight_DD)
  signal = np.trace(sigma_DD @ weight_DD) + noise
  return (1 + 1 / n) * sigma_DD @ weight_DD @ sigma_DD + signal / n * sigma_DD


def best_preconditioner(sigma_DD, n: int, noise: float = 0.0, weight_DD=None) -> np.ndarray:
  """Returns Gamma = W Sigma M^-1, of which Gamma b / n is the best of all single preconditioned steps."""
  moment_DD = second_moment(sigma_DD, n, noise, weight_DD)
  sigma_DD = np.asarray(sigma_DD, np.float64)
  left_DD = sigma_DD if weight_DD is None else np.asarray(weight_DD, np.float64) @ sigma_DD
  return np.linalg.solve(moment_DD, left_DD.T).T


def risk_of(gamma_DD, sigma_DD, n: int, noise: float = 0.0, weight_DD=None) -> float:
  """Returns the risk of Gamma b / n, wherever Gamma comes from, on prompts of n pairs of covariance Sigma."""
  moment_DD = second_moment(sigma_DD, n, noise, weight_DD)
  sigma_DD, gamma_DD = np.asarray(sigma_DD, np.float64), np.asarray(gamma_DD, np.float64)
  prior_DD = sigma_DD if weight_DD is None else sigma_DD @ np.asarray(weight_DD, np.float64)
  return float(np.trace(prior_DD) - 2 * np.trace(sigma_DD @ gamma_DD @ prior_DD)
               + np.trace(sigma_DD @ gamma_DD @ moment_DD @ gamma_DD.T))


def risk_gradient(gamma_DD, sigma_DD, n: int, noise: float = 0.0, weight_DD=None) -> np.ndarray:
  """Returns the gradient of `risk_of` in Gamma: 2 (Sigma Gamma M - Sigma W Sigma)."""
  moment_DD = second_moment(sigma_DD, n, noise, weight_DD)
  sigma_DD = np.asarray(sigma_DD, np.float64)
  prior_DD = sigma_DD if weight_DD is None else sigma_DD @ np.asarray(weight_DD, np.float64)
  return 2 * (sigma_DD @ np.asarray(gamma_DD, np.float64) @ moment_DD - prior_DD @ sigma_DD)


def zhang_limit(sigma_DD, n: int) -> tuple[float, np.ndarray]:
  """Returns where gradient flow takes the two factors: (last entry of W_PV, D x D block of W_KQ)."""
  inverse_DD = best_preconditioner(sigma_DD, n)
  balance = np.linalg.norm(inverse_DD) ** 0.5
  return float(balance), inverse_DD / balance


def shifted_risk(c: float, n: int, m: int, d: int) -> float:
  """Returns the risk on prompts of m pairs of covariance c I, after training on n pairs of covariance I.

  At m = n it equals c d, the risk of predicting 0, at c = 2 for every n and d.
  """
  check(n, d)
  check(m, d)
  if not c > 0:
    raise ValueError(f"c={c}, the covariance of a coordinate, must be above 0.")
  gain = n / (n + 1 + d)
  return c * d * (1 - 2 * gain * c + gain**2 * c**2 * (m + d + 1) / m)


def zhang_test_risk(a_D, spread_DD, sigma_DD, n: int, m: int) -> float:
  """Returns what the limit of training costs beyond the best linear predictor of a prompt law, with m pairs.

  Args:
    a_D: weights of the best linear predictor, Sigma^-1 E[x y].
    spread_DD: covariance of x y.
    sigma_DD: covariance of x, in training and here.
    n: pairs in training.
    m: pairs here.
  """
  check(m, len(np.atleast_2d(sigma_DD)))
  inverse_DD = best_preconditioner(sigma_DD, n)
  sigma_DD, a_D = np.asarray(sigma_DD, np.float64), np.asarray(a_D, np.float64)
  square_DD = inverse_DD @ inverse_DD
  size = lambda power: a_D @ square_DD @ np.linalg.matrix_power(sigma_DD, power) @ a_D
  trace = np.trace(sigma_DD)
  return float(np.trace(np.asarray(spread_DD, np.float64) @ square_DD @ sigma_DD) / m
               + (size(3) + 2 * trace * size(2) + trace**2 * size(1)) / n**2)


def random_covariance_gain(n: int, d: int) -> float:
  """Returns the best g of (g / n) b where every prompt has a diagonal covariance of its own, Exp(1) entries.

  It tends to 1/3, so a risk of d / 3 stays however long the prompts are.
  """
  check(n, d)
  return 2 / (6 * (n + 1) / n + (6 + 2 * (d - 1)) / n)
