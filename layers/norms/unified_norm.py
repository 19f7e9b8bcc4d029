"""Unified Normalization: a batch norm without mean, smoothed over the last batches in both directions.

Per feature, over all N real positions, at step t = 1, 2, ... with the last n batches in X:

    s = mean_N(x^2)                             goes into row t mod n of X
    var = s  while t <= n, t < warmup or skip;  afterwards the geometric mean of X's rows
    z = x / sqrt(var + eps),   y = g z + b,     v <- m v + (1 - m) var   (v serves evaluation)
    r = clip(sqrt(var + eps) / sqrt(v + eps), 1/5, 5)   with the old v; 1 while t <= max(ramp, warmup) or skip

Outlier filtration, once t >= warmup: where in any feature the arithmetic exceeds the
geometric mean of X's rows by n times the (unbiased) variance of all entries of
sqrt(X), as X was before this step, the batch is an outlier: skip, and the row is v.

The backward pass is an approximation with two statistics of its own
(layers/backward_state.py). With G = dL/dy and h = g r G:

    gz = mean_N(h z)                            goes into row t mod k of Z; e does if skip
    e <- m e + (1 - m) c,   c = gz  while t <= k, t < warmup or skip;  afterwards the mean of Z's rows
    dL/dx = (h - e z) / sqrt(var + eps)         with the new e; c instead of e if skip
    dL/dg = sum_N(r G z),   dL/db = sum_N(G)

In evaluation y = g x / sqrt(v + eps) + b is affine and folds into the map that reads
it. In a causal model the training forward sees the future through s.

Reference: Yang et al., "Unified Normalization for Accelerating and Stabilizing
Transformers", 2022. The paper advises filtration for vision only.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import backward_state, batch_statistics, clock, moments

# Dims: W batches kept for the forward statistic or for the backward one.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def normalise(momentum, x, scale_D, bias_D, inverse_D, ratio_D, state, when, mask):
  """Returns g x inverse + b in x's dtype; its backward rule is the approximate one.

  Args:
    momentum: m, of e.
    x, scale_D, bias_D: the input, g and b.
    inverse_D, ratio_D: 1 / sqrt(var + eps) and r; no gradient reaches them.
    state: what backward_state.declare gave, with rows_WD (Z) and e_D.
    when: (t, smooth, skip): the step, whether c is the mean of rows, whether the batch is an outlier.
    mask: of real positions, or None.
  """
  del momentum, ratio_D, state, when, mask
  y = x.astype(jnp.float32) * moments.features(scale_D * inverse_D, x)
  return (y + moments.features(bias_D, x)).astype(x.dtype)


def _forward(momentum, *args):
  x, scale_D, _, inverse_D, ratio_D, state, when, mask = args
  return normalise(momentum, *args), (x, scale_D, inverse_D, ratio_D, state, when, mask)


def _backward(momentum, kept, g):
  x, scale_D, inverse_D, ratio_D, state, (t, smooth, skip), mask = kept
  per_feature, axes = functools.partial(moments.features, x=x), tuple(range(x.ndim - 1))
  g, z = g.astype(jnp.float32), x.astype(jnp.float32) * per_feature(inverse_D)
  h, rows_WD, e_D = g * per_feature(scale_D * ratio_D), state["rows_WD"], state["e_D"]
  gz_D = moments.mean(h * z, axes, mask).reshape(-1)
  rows_WD = rows_WD.at[t % len(rows_WD)].set(jnp.where(skip, e_D, gz_D))
  c_D = jnp.where(smooth, jnp.mean(rows_WD, axis=0), gz_D)
  e_D = momentum * e_D + (1 - momentum) * c_D
  dx = (h - per_feature(jnp.where(skip, c_D, e_D)) * z) * per_feature(inverse_D)
  new = backward_state.written(rows_WD=rows_WD, e_D=e_D)
  return (dx.astype(x.dtype), ratio_D * jnp.sum(g * z, axes), jnp.sum(g, axes), None, None, new, None, None)


normalise.defvjp(_forward, _backward)


def is_outlier(rows_WD, before_WD):
  """Whether the newest of the rows X, which were `before_WD`, stands out in any feature."""
  spread = jnp.var(jnp.sqrt(before_WD), ddof=1)
  geometric_D = jnp.exp(jnp.mean(jnp.log(rows_WD), axis=0))
  return jnp.any(jnp.mean(rows_WD, axis=0) - geometric_D > spread * len(rows_WD))


class UnifiedNorm(nn.Module):
  """The norm with its gain and bias.

  Attributes:
    forward_window, backward_window: n and k, batches that are smoothed over; 1 smooths nothing.
    warmup: steps without smoothing.
    ramp: steps with r = 1.
    momentum: m, weight of the old running statistics.
    filtration: whether outliers are looked for.
    eps: added to each mean square.
    train: whether statistics are learned and used.
  """

  forward_window: int = 4
  backward_window: int = 4
  warmup: int = 4000
  ramp: int = 1000
  momentum: float = 0.9
  filtration: bool = False
  eps: float = 1e-5
  train: bool = False

  def _check(self, x, mask):
    moments.check_mask(x, mask)
    batch_statistics.check_momentum(self.momentum)
    for name in ("forward_window", "backward_window"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1 batch.")

  @nn.compact
  def __call__(self, x, mask=None):
    self._check(x, mask)
    features = x.shape[-1:]
    scale_D = self.param("scale", nn.initializers.ones, features)
    bias_D = self.param("bias", nn.initializers.zeros, features)
    v = self.variable(batch_statistics.COLLECTION, "var", jnp.ones, features)
    if not self.train:
      y = x.astype(jnp.float32) * moments.features(scale_D * jax.lax.rsqrt(v.value + self.eps), x)
      return (y + moments.features(bias_D, x)).astype(x.dtype)

    t = clock.now(self) + 1
    axes = tuple(range(x.ndim - 1))
    real = moments.count(x, axes, mask).reshape(-1) > 0
    s_D = moments.mean(jnp.square(jax.lax.stop_gradient(x).astype(jnp.float32)), axes, mask).reshape(-1)
    var_D, skip = self._smoothed(jnp.where(real, s_D, v.value), v.value, t)
    ratio_D = jnp.clip(jnp.sqrt((var_D + self.eps) / (v.value + self.eps)), 0.2, 5.0)
    ratio_D = jnp.where((t <= max(self.ramp, self.warmup)) | skip, 1.0, ratio_D)
    K = self.backward_window
    state = backward_state.declare(self, rows_WD=(K, *features), e_D=features)
    smooth = (t > K) & (t >= self.warmup) & ~skip
    y = normalise(self.momentum, x, scale_D, bias_D, jax.lax.rsqrt(var_D + self.eps), ratio_D, state,
                  (t, smooth, skip), mask)
    if batch_statistics.writes(self):
      v.value = self.momentum * v.value + (1 - self.momentum) * var_D
    return y

  def _smoothed(self, s_D, v_D, t):
    """Returns (var_D, skip) and writes the row of this batch."""
    n = self.forward_window
    rows = self.variable(batch_statistics.COLLECTION, "rows", jnp.zeros, (n, *s_D.shape))
    skips = self.variable(batch_statistics.COLLECTION, "skips", jnp.zeros, ())
    new_WD, skip = rows.value.at[t % n].set(s_D), jnp.asarray(n <= 1)
    if self.filtration and n > 1:
      skip = (t >= self.warmup) & is_outlier(new_WD, rows.value)
      new_WD = jnp.where(skip, rows.value.at[t % n].set(v_D), new_WD)
      if batch_statistics.writes(self):
        skips.value += skip
    if batch_statistics.writes(self):
      rows.value = new_WD
    # Rows not yet filled are 0 and their logarithm is -inf; until then the branch is not taken.
    smooth = (t > n) & (t >= self.warmup) & ~skip
    return jnp.where(smooth, jnp.exp(jnp.mean(jnp.log(new_WD), axis=0)), s_D), skip

  def as_affine(self, variables):
    """Returns (A_D, B_D) such that evaluation is x -> A x + B."""
    v_D, params = variables[batch_statistics.COLLECTION]["var"], variables["params"]
    return batch_statistics.as_affine(0.0, v_D, params["scale"], params["bias"], self.eps)
