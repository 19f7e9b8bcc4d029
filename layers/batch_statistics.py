"""Mean and variance of each feature over all tokens of a batch, and their running averages.

    batch:    mean_B, var_B    over every real position, biased variance
    running:  m r + (1 - m) mean_B,   m r + (1 - m) var_B N / (N - 1)

In training a layer normalises with the batch, in evaluation with the running
averages. Under a mesh the batch is the global one. A batch without a single real
position stands in with the running averages, so that it moves nothing.

Reference: Ioffe and Szegedy, "Batch Normalization", 2015.
"""

import jax.numpy as jnp

from layers import moments

COLLECTION = "batch_stats"


def of_tokens(module, x, mask=None, *, momentum: float, train: bool, update=True):
  """Runs inside a compact method, which comes to own the variables "mean" and "var".

  Args:
    module: the flax module.
    x: [..., D].
    mask: True where a position is real, or None.
    momentum: m, the weight of the old average.
    train: whether the statistics are those of this batch.
    update: whether this batch enters the averages; may be traced.

  Returns:
    (mean, variance), float32, with the number of axes of x.
  """
  moments.check_mask(x, mask)
  mean = module.variable(COLLECTION, "mean", jnp.zeros, x.shape[-1:])
  var = module.variable(COLLECTION, "var", jnp.ones, x.shape[-1:])
  running = moments.features(mean.value, x), moments.features(var.value, x)
  if not train:
    return running
  axes = tuple(range(x.ndim - 1))
  n = moments.count(x, axes, mask)
  now = [jnp.where(n > 0, new, old)
         for new, old in zip(moments.mean_and_variance(x, axes, mask), running)]
  if writes(module):
    bessel = n / jnp.maximum(n - 1, 1)
    for variable, new in ((mean, now[0]), (var, jnp.where(n > 1, bessel * now[1], now[1]))):
      averaged = momentum * variable.value + (1 - momentum) * new.reshape(-1)
      variable.value = jnp.where(jnp.logical_and(update, n.reshape(-1) > 0), averaged, variable.value)
  return tuple(now)


def writes(module) -> bool:
  """Whether a forward pass may write statistics: not while parameters are made."""
  return module.is_mutable_collection(COLLECTION) and not module.is_initializing()


def check_momentum(momentum: float):
  """Raises ValueError unless the weight of the old average lies in [0, 1)."""
  if not 0 <= momentum < 1:
    raise ValueError(f"momentum={momentum} must be at least 0 and below 1, the weight of the old average.")


def as_affine(mean_D, var_D, scale_D, bias_D, eps: float):
  """Returns (A_D, B_D) such that evaluation is x -> A x + B."""
  A_D = scale_D / jnp.sqrt(var_D + eps)
  return A_D, bias_D - mean_D * A_D
