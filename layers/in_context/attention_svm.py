"""A softmax attention that is trained to pick tokens, and the direction in which its weights grow.

    f(X, z) = v^T X^T softmax(X W z)        loss = mean_i log(1 + exp(-y_i f(X_i, z_i)))

v is fixed. Normalised gradient descent, W <- W - rate g / |g|, lets W grow without bound in the direction of the
max-margin problem that separates the token each prompt selects, a_i = argmax_t x_it . W z_i, from the others:

    min |W|_F   subject to   (x_i,a_i - x_it) . W z_i >= 1  for all t != a_i

research/token_svm.py solves it. The tokens must be those that were selected: they need not be the best ones.

Reference: Tarzanagh, Li, Thrampoulidis and Oymak, "Transformers as Support Vector Machines", 2023.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Dims: N prompts, T tokens, D width.


class Selection(NamedTuple):
  """Prompts X, their queries z, labels y of -1 or 1, and the fixed head v."""

  x_NTD: jax.Array
  z_ND: jax.Array
  y_N: jax.Array
  v_D: jax.Array


def draw(key, n: int, t: int, d: int) -> Selection:
  """Draws tokens, queries and head uniformly from the unit sphere, and labels from fair coins.

  Raises:
    ValueError: no prompt, fewer than two tokens to choose from, or no width.
  """
  if n < 1 or t < 2 or d < 1:
    raise ValueError(f"n={n} prompts and d={d} must be at least 1, and t={t} tokens at least 2, to choose from.")
  key_x, key_z, key_y, key_v = jax.random.split(key, 4)
  unit = lambda key, *shape: (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True))(jax.random.normal(key, shape))
  label_N = jnp.where(jax.random.bernoulli(key_y, shape=(n,)), 1.0, -1.0)
  return Selection(unit(key_x, n, t, d), unit(key_z, n, d), label_N, unit(key_v, d))


def scores(weight_DD, data: Selection):
  """Returns X W z, [N, T]."""
  return jnp.einsum("ntd,de,ne->nt", data.x_NTD, weight_DD, data.z_ND, precision=jax.lax.Precision.HIGHEST)


def loss(weight_DD, data: Selection):
  """Returns the mean logistic loss."""
  s_NT = scores(weight_DD, data)
  h_NT = jnp.einsum("ntd,d->nt", data.x_NTD, data.v_D, precision=jax.lax.Precision.HIGHEST)
  h_N1 = jnp.take_along_axis(h_NT, jnp.argmax(s_NT, axis=-1)[:, None], axis=-1)
  # Measured from the selected token: otherwise the gradient is a difference of numbers near 1, which
  # is rounding alone once the others have less than 1e-7 of the attention.
  f_N = h_N1[:, 0] + jnp.sum(jax.nn.softmax(s_NT, axis=-1) * (h_NT - h_N1), axis=-1)
  return jnp.mean(jax.nn.softplus(-data.y_N * f_N))


def selected(weight_DD, data: Selection):
  """Returns the token that each prompt attends to most."""
  return jnp.argmax(scores(weight_DD, data), axis=-1)


def best(data: Selection):
  """Returns the token of each prompt that alone would give the lowest loss."""
  return jnp.argmax(data.y_N[:, None] * jnp.einsum("ntd,d->nt", data.x_NTD, data.v_D), axis=-1)


def descend(weight_DD, data: Selection, *, rate: float = 0.1, steps: int):
  """Returns (W after so many normalised steps, loss before each of them)."""
  def step(weight_DD, _):
    value, slope_DD = jax.value_and_grad(loss)(weight_DD, data)
    # Squares of a gradient of 1e-20 underflow; a gradient that is 0 altogether has no direction to follow.
    slope_DD = slope_DD / jnp.maximum(jnp.max(jnp.abs(slope_DD)), jnp.finfo(jnp.float32).tiny)
    return weight_DD - rate * slope_DD / jnp.maximum(jnp.linalg.norm(slope_DD), 1.0), value
  return jax.lax.scan(step, weight_DD, None, length=steps)
