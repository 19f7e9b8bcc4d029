"""PowerNorm: a batch norm without mean, whose running statistic serves the training forward too.

Per feature, statistics over all N real positions of the batch, at step t = 1, 2, ...:

    s = mean_N(x^2),   d = s while t <= warmup, afterwards phi (before this step)
    z = x / sqrt(d + eps),   y = g z + b
    phi <- phi (t-1)/t + s/t  while t < warmup;   then always  phi <- af phi + (1 - af) s

The backward pass does not differentiate s. It carries nu, a statistic of its own
(layers/backward_state.py), and with G = dL/dy computes

    a = g G - (1 - ab) nu z,   dL/dx = a / sqrt(D + eps),   nu <- nu + mean_N(a z)

with D = d (divisor "forward") or s (divisor "batch"). Before all this PN, unlike PN-V,
divides each position by the root mean square of its group of features. Evaluation
uses phi. In a causal model the training forward sees the future through s.

Reference: Shen, Yao, Gholami, Mahoney and Keutzer, "PowerNorm: Rethinking Batch
Normalization in Transformers", 2020. The published code has divisor "batch", and takes
nu over padded positions too.

Measured on one shared CPU core, CPU time of forward and backward at [8, 256, 256] float32,
median of 21 pairs against flax's LayerNorm: PN 1.9 to 2.5 times as long
(scaling the groups is a norm of its own, with its own backward), PN-V 0.8.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import backward_state, batch_statistics, clock, moments

DIVISORS = ("forward", "batch")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def normalise(momentum, x, scale_D, bias_D, forward_D, backward_D, state, mask):
  """Returns g x forward + b in x's dtype; its backward rule is the approximate one.

  Args:
    momentum: ab.
    x, scale_D, bias_D: the input, g and b.
    forward_D, backward_D: 1 / sqrt(d + eps) and 1 / sqrt(D + eps); no gradient reaches them.
    state: what backward_state.declare gave, with nu_D.
    mask: of real positions, or None.
  """
  del momentum, backward_D, state, mask
  y = x.astype(jnp.float32) * moments.features(scale_D * forward_D, x)
  return (y + moments.features(bias_D, x)).astype(x.dtype)


def _forward(momentum, *args):
  x, scale_D, _, forward_D, backward_D, state, mask = args
  return normalise(momentum, *args), (x, scale_D, forward_D, backward_D, state, mask)


def _backward(momentum, kept, g):
  x, scale_D, forward_D, backward_D, state, mask = kept
  per_feature, axes = functools.partial(moments.features, x=x), tuple(range(x.ndim - 1))
  g, z = g.astype(jnp.float32), x.astype(jnp.float32) * per_feature(forward_D)
  a = g * per_feature(scale_D) - per_feature((1 - momentum) * state["nu_D"]) * z
  dx = (a * per_feature(backward_D)).astype(x.dtype)
  new_D = state["nu_D"] + moments.mean(a * z, axes, mask).reshape(-1)
  return (dx, jnp.sum(g * z, axes), jnp.sum(g, axes), None, None, backward_state.written(nu_D=new_D), None)


normalise.defvjp(_forward, _backward)


def scale_groups(x, groups: int, eps=1e-5):
  """Divides each position by the root mean square of each of its groups of features, float32."""
  x_G = x.astype(jnp.float32).reshape(*x.shape[:-1], groups, -1)
  return (x_G * jax.lax.rsqrt(jnp.mean(x_G * x_G, axis=-1, keepdims=True) + eps)).reshape(x.shape)


def advance(phi_D, s_D, t, warmup: int, momentum: float):
  """Returns phi after step t = 1, 2, ..."""
  while_warm_D = phi_D * (t - 1) / t + s_D / t
  return momentum * jnp.where(t < warmup, while_warm_D, phi_D) + (1 - momentum) * s_D


class PowerNorm(nn.Module):
  """The norm with its gain and bias; PN, or PN-V where groups = 0.

  Attributes:
    groups: of features that are scaled first; 0 scales none.
    warmup: steps whose forward uses the batch.
    forward_momentum, backward_momentum: af and ab.
    divisor: "forward" or "batch", what the gradient is divided by.
    eps: added to each mean square.
    train: whether statistics are learned and used.
  """

  groups: int = 1
  warmup: int = 10_000
  forward_momentum: float = 0.9
  backward_momentum: float = 0.9
  divisor: str = "forward"
  eps: float = 1e-5
  train: bool = False

  def _check(self, x, mask):
    moments.check_mask(x, mask)
    batch_statistics.check_momentum(self.forward_momentum)
    batch_statistics.check_momentum(self.backward_momentum)
    if self.divisor not in DIVISORS:
      raise ValueError(f"divisor={self.divisor!r} is unknown; choose from {', '.join(DIVISORS)}.")
    if self.groups and x.shape[-1] % self.groups:
      raise ValueError(f"groups={self.groups} must divide the {x.shape[-1]} features; 0 scales none.")

  @nn.compact
  def __call__(self, x, mask=None):
    self._check(x, mask)
    given, features = x, x.shape[-1:]
    scale_D = self.param("scale", nn.initializers.ones, features)
    bias_D = self.param("bias", nn.initializers.zeros, features)
    phi = self.variable(batch_statistics.COLLECTION, "phi", jnp.ones, features)
    if self.groups:
      x = scale_groups(x, self.groups)
    if not self.train:
      inverse_D = jax.lax.rsqrt(phi.value + self.eps)
      y = x.astype(jnp.float32) * moments.features(scale_D * inverse_D, x) + moments.features(bias_D, x)
      return y.astype(given.dtype)

    state, t = backward_state.declare(self, nu_D=features), clock.now(self) + 1
    axes = tuple(range(x.ndim - 1))
    real = moments.count(x, axes, mask).reshape(-1) > 0
    s_D = moments.mean(jnp.square(jax.lax.stop_gradient(x).astype(jnp.float32)), axes, mask).reshape(-1)
    s_D = jnp.where(real, s_D, phi.value)
    d_D = jnp.where(t <= self.warmup, s_D, phi.value)
    forward_D = jax.lax.rsqrt(d_D + self.eps)
    backward_D = forward_D if self.divisor == "forward" else jax.lax.rsqrt(s_D + self.eps)
    y = normalise(self.backward_momentum, x, scale_D, bias_D, forward_D, backward_D, state, mask)
    if batch_statistics.writes(self):
      new_D = advance(phi.value, s_D, t, self.warmup, self.forward_momentum)
      phi.value = jnp.where(real, new_D, phi.value)
    return y.astype(given.dtype)

  def as_affine(self, variables):
    """Returns (A_D, B_D) such that evaluation is x -> A x + B.

    Raises:
      ValueError: groups are scaled first, which is not affine.
    """
    if self.groups:
      raise ValueError(f"groups={self.groups} scales every position by itself, which no map can absorb; "
                       "only groups=0 (PN-V) is affine.")
    phi_D, params = variables[batch_statistics.COLLECTION]["phi"], variables["params"]
    return batch_statistics.as_affine(0.0, phi_D, params["scale"], params["bias"], self.eps)
