"""BatchNorm over tokens: each feature has the mean and variance of all tokens of the batch.

    y = g (x - mean_{B,T}(x)) / sqrt(var_{B,T}(x) + eps) + b

In evaluation both are running averages (layers/batch_statistics.py), so the norm is
affine and folds into the map that reads it. In a causal model the training forward
sees the future through its statistics: compare losses in evaluation mode only.

References: Ioffe and Szegedy, "Batch Normalization", 2015; Frankle, Schwab and
Morcos, "Training BatchNorm and Only BatchNorm", 2020 (gains drawn from [0, 1)).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import batch_statistics, moments

GAINS = {"ones": nn.initializers.ones, "uniform": nn.initializers.uniform(1.0)}


def batch_norm(x, mean, var, scale_D, bias_D, eps=1e-5):
  """Normalises with the given statistics, which broadcast against x; returns x's dtype."""
  y = (x.astype(jnp.float32) - mean) * (moments.features(scale_D, x) * jax.lax.rsqrt(var + eps))
  return (y + moments.features(bias_D, x)).astype(x.dtype)


class BatchNorm(nn.Module):
  """The norm with its gain and bias.

  Attributes:
    eps: added to the variance.
    momentum: weight of the old running average, per batch.
    gain_init: "ones", or "uniform" for gains from [0, 1).
    train: whether statistics are those of the batch.
  """

  eps: float = 1e-5
  momentum: float = 0.9
  gain_init: str = "ones"
  train: bool = False

  @nn.compact
  def __call__(self, x, mask=None):
    batch_statistics.check_momentum(self.momentum)
    if self.gain_init not in GAINS:
      raise ValueError(f"gain_init={self.gain_init!r} is unknown; choose from {', '.join(GAINS)}.")
    scale_D = self.param("scale", GAINS[self.gain_init], x.shape[-1:])
    bias_D = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    mean, var = batch_statistics.of_tokens(self, x, mask, momentum=self.momentum, train=self.train)
    return batch_norm(x, mean, var, scale_D, bias_D, self.eps)

  def as_affine(self, variables):
    """Returns (A_D, B_D) such that evaluation is x -> A x + B."""
    params, stats = variables["params"], variables[batch_statistics.COLLECTION]
    return batch_statistics.as_affine(stats["mean"], stats["var"], params["scale"], params["bias"], self.eps)
