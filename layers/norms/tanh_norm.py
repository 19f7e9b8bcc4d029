"""TanhNorm: bounds a router's logits to weights near 1, without statistics or parameters.

    w = 1 + alpha tanh(logit)          1 - alpha < w < 1 + alpha,  alpha = 0.2

At logit 0 the weight is exactly 1, so a fresh router leaves a pretrained model as it
was. `keep_ratio` is how many tokens p-MoD routes, by depth, on a shifted cosine:

    rho_l = cos(pi l / (L - 1)) / 2 + mean,  l = 0 .. L - 1;  1 if above 0.85, at least 0.15

Reference: Zhang et al., "p-MoD: Building Mixture-of-Depths MLLMs via Progressive
Ratio Decay", 2024.
"""

import math

import flax.linen as nn
import jax.numpy as jnp


def tanh_norm(logits, alpha=0.2):
  """Returns 1 + alpha tanh(logits), computed in float32, in the dtype of the logits."""
  return (1 + alpha * jnp.tanh(logits.astype(jnp.float32))).astype(logits.dtype)


def keep_ratio(layer: int, depth: int, mean: float, dense=0.85, least=0.15) -> float:
  """Returns the share of tokens that a layer keeps; 1 where it stays dense.

  Raises:
    ValueError: fewer than 2 layers, or a layer outside of them.
  """
  if depth < 2 or not 0 <= layer < depth:
    raise ValueError(f"layer={layer} must be from 0 to depth - 1 = {depth - 1}, and depth at least 2.")
  ratio = 0.5 * math.cos(math.pi * layer / (depth - 1)) + mean
  return 1.0 if ratio > dense else max(ratio, least)


class TanhNorm(nn.Module):
  """The bound on every number.

  Attributes:
    alpha: how far from 1 a weight can get.
  """

  alpha: float = 0.2

  @nn.compact
  def __call__(self, x, mask=None):
    del mask  # every number stands alone
    return tanh_norm(x, self.alpha)
