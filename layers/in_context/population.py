"""Gradient descent on the population risk of one linear self-attention layer, in closed form.

From the start of Zhang et al. only two blocks move, s = W_PV[-1, -1] and K = W_KQ[:d, :d]; the layer then is the
rule Gamma = s K^T of closed_forms.py, and with G the gradient of half its risk in Gamma

    s <- s - rate <G, K^T>        K <- K - rate s G^T

Nothing is sampled. The flow keeps s^2 - |K|^2, which is 0 at the start and, by the noise of gradients, is lost
when the same layer is trained on drawn prompts.

Reference: Zhang, Frei and Bartlett, "Trained Transformers Learn Linear Models In-Context", 2024, Theorem 4.
"""

import numpy as np

from layers.in_context import closed_forms


def start(d: int, scale: float, seed: int = 0) -> tuple[float, np.ndarray]:
  """Returns (s, K) with K = scale Theta Theta^T / |Theta Theta^T|."""
  closed_forms.check(1, d)
  theta = np.random.default_rng(seed).standard_normal((d, d))
  square = theta @ theta.T
  return scale, scale * square / np.linalg.norm(square)


def descend(s: float, block_DD, sigma_DD, n: int, *, rate: float, steps: int) -> tuple[float, np.ndarray]:
  """Returns (s, K) after so many steps on prompts of n pairs of covariance Sigma, without noise.

  Raises:
    ValueError: a covariance that is none, or a descent that diverged.
  """
  moment_DD = closed_forms.second_moment(sigma_DD, n)
  sigma_DD = np.asarray(sigma_DD, np.float64)
  square_DD, block_DD = sigma_DD @ sigma_DD, np.asarray(block_DD, np.float64)
  for _ in range(steps):
    slope_DD = (s * sigma_DD @ block_DD.T @ moment_DD - square_DD).T
    s, block_DD = s - rate * np.sum(slope_DD * block_DD), block_DD - rate * s * slope_DD
    if not abs(s) < 1e6:
      raise ValueError(f"rate={rate} is too large: s={s:.3g} diverges; take a smaller one.")
  return float(s), block_DD
