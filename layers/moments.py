"""Means and variances in float32 over any axes, of real positions only.

A mask says True where a position is real and has the shape of x without its
features. A mean over no position at all is 0.
"""

import math

import jax.numpy as jnp


def check_mask(x, mask):
  """Raises ValueError unless the mask has one entry per position of x."""
  if mask is not None and mask.shape != x.shape[:-1]:
    raise ValueError(f"mask of shape {mask.shape} must have one entry per position of x, "
                     f"{x.shape[:-1]}; True marks a real one.")


def count(x, axes, mask=None):
  """Returns how many real entries `axes` hold, float32, with as many axes as x."""
  if mask is None:
    return jnp.full((1,) * x.ndim, math.prod(x.shape[axis] for axis in axes), jnp.float32)
  own = [axis for axis in axes if axis < mask.ndim]
  beside = math.prod(x.shape[axis] for axis in axes if axis >= mask.ndim)
  return jnp.sum(_spread(mask, x), own, dtype=jnp.float32, keepdims=True) * beside


def mean(x, axes, mask=None):
  """Returns the mean over `axes`, which stay as axes of size 1."""
  x32 = x.astype(jnp.float32)
  if mask is None:
    return jnp.mean(x32, axes, keepdims=True)
  total = jnp.sum(jnp.where(_spread(mask, x), x32, 0.0), axes, keepdims=True)
  return total / jnp.maximum(count(x, axes, mask), 1.0)


def mean_and_variance(x, axes, mask=None):
  """Returns the mean and the biased variance over `axes`."""
  centre = mean(x, axes, mask)
  # Centre first: mean(x^2) - mean(x)^2 cancels when the mean is large.
  return centre, mean(jnp.square(x.astype(jnp.float32) - centre), axes, mask)


def over_groups(statistic, groups: int):
  """Averages a statistic per feature over groups of features; every feature gets that of its group.

  Reducing [B, T, D] over T first keeps the features in one contiguous axis: half the time of a
  reduction of [B, T, groups, D / groups], measured on a CPU.
  """
  parts = statistic.reshape(*statistic.shape[:-1], groups, -1)
  return jnp.broadcast_to(jnp.mean(parts, axis=-1, keepdims=True), parts.shape).reshape(statistic.shape)


def features(x_D, x):
  """Returns a vector of features with the axes of size 1 that broadcast it against x."""
  return x_D.reshape((1,) * (x.ndim - 1) + x_D.shape)


def _spread(mask, x):
  return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))

