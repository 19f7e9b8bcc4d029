"""SimpleRMSNorm: put the features on a sphere and learn nothing.

    y = x / sqrt(mean_D(x^2) + eps)            "inside", eps = 1e-6
    y = x / (sqrt(mean_D(x^2)) + eps)          "outside", eps = 1e-8

Both are published under the one name. With eps = 0 either has y(c x) = sign(c) y(x).

References: Qin et al., "Scaling TransNormer to 175 Billion Parameters", 2023, and its
kernels (inside); Qin et al., "The Devil in Linear Transformer", 2022 (outside).
"""

import flax.linen as nn
import jax.numpy as jnp

from layers.norms.rms_norm import rms_norm

EPS = {"inside": 1e-6, "outside": 1e-8}


def simple_rms_norm(x, eps=EPS["inside"]):
  """Normalises the last axis with float32 statistics, eps under the root; returns x's dtype."""
  return rms_norm(x, eps=eps)


def outside(x, eps=EPS["outside"]):
  """`simple_rms_norm` with eps added to the root; a row of zeros has the gradient 1 / eps."""
  x32 = x.astype(jnp.float32)
  square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
  # The root has an infinite slope at 0, and infinity times 0 is no number: keep away from it.
  root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
  return (x32 / (root + eps)).astype(x.dtype)


class SimpleRMSNorm(nn.Module):
  """The norm; it has no parameters.

  Attributes:
    form: where eps stands, "inside" or "outside" the root.
    eps: 0 takes the published one.
  """

  form: str = "inside"
  eps: float = 0.0

  @nn.compact
  def __call__(self, x, mask=None):
    del mask  # every position has its own statistics
    if self.form not in EPS:
      raise ValueError(f"form={self.form!r} is unknown; choose from {', '.join(EPS)}.")
    norm = simple_rms_norm if self.form == "inside" else outside
    return norm(x, self.eps or EPS[self.form])
