"""Linear read-outs of what a layer holds, fitted in closed form: the probe is ridge regression, not training.

    [W; c] = (Z^T Z + strength tr(Z^T Z) / F diag(1, ..., 1, 0))^-1 Z^T Y,    Z = [H, 1]

The penalty is relative to the mean square of a feature, and the constant c pays none. A probe tells little unless it
is fitted on some prompts and judged on others: `explained` takes both.

References: Fu et al., "Transformers Learn Higher-Order Optimization Methods for In-Context Learning", 2024 (a
read-out per layer; there trained by Adam); Akyurek et al., "What learning algorithm is in-context learning?
Investigations with linear models", 2023 (X^T y and w in the layers; there with pooled positions and an MLP as well).
"""

import numpy as np

from layers.in_context import filters

# Dims: M samples, F features, K targets.

STRENGTH = 1e-6  # of the mean square of a feature; float32 streams are exact to 1e-7


def fit(h_MF, target_MK, strength: float = STRENGTH) -> tuple[np.ndarray, np.ndarray]:
  """Returns (W_FK, c_K) of the read-out h W + c, in float64.

  Raises:
    ValueError: fewer samples than features and constant, or a strength that is not above 0.
  """
  h_MF, target_MK = filters.wide(h_MF), filters.wide(target_MK)
  M, F = h_MF.shape
  if M <= F or len(target_MK) != M:
    raise ValueError(f"M={M} samples with {len(target_MK)} targets must be as many, and more than F={F} features.")
  if not 0 < strength < np.inf:
    raise ValueError(f"strength={strength} must be above 0 and finite.")
  # Centred, which is what a constant without penalty comes to.
  middle_F, mean_K = h_MF.mean(axis=0), target_MK.mean(axis=0)
  z_MF = h_MF - middle_F[None]
  gram_FF = z_MF.T @ z_MF
  gram_FF[np.arange(F), np.arange(F)] += strength * max(np.trace(gram_FF) / F, 1e-300)
  w_FK = np.linalg.solve(gram_FF, z_MF.T @ (target_MK - mean_K[None]))
  return w_FK, mean_K - middle_F @ w_FK


def apply(readout, h) -> np.ndarray:
  """Returns h W + c of features [..., F]."""
  w_FK, c_K = readout
  found = filters.wide(h) @ w_FK
  return found + c_K.reshape((1,) * (found.ndim - 1) + (-1,))


def explained(h_MF, target_MK, strength: float = STRENGTH) -> float:
  """Fits on the first half of the samples; returns the share of the targets' variance explained in the second."""
  half = len(h_MF) // 2
  readout = fit(h_MF[:half], target_MK[:half], strength)
  later_MK = filters.wide(target_MK[half:])
  rest = np.sum((later_MK - apply(readout, h_MF[half:])) ** 2)
  return float(1 - rest / np.sum((later_MK - later_MK.mean(axis=0, keepdims=True)) ** 2))
