"""Families of functions to be learned from one prompt, and what may shift between prompts of training and of a test.

    linear          f(x) = w . x                                 w ~ N(0, I)
    sparse          the same; all but `sparsity` entries of w, chosen for every prompt, are 0
    quadratic       f(x) = w . x^2 / sqrt(3)                     squares entry by entry
    relu_network    f(x) = sqrt(2 / H) v . relu(V x)             V, v standard normal
    decision_tree   a full tree: each node asks whether one coordinate is above 0, leaves ~ N(0, 1)

A prompt is N points; every x is a query for the points before it, so there is no query apart. A curriculum changes no
shape: coordinates from `dims` on are 0 (and the function sees none of them), and points beyond a number are left out
of the loss, which with a causal model is a shorter prompt.

    normal      x = L z
    half        the second half of the coordinates is 0: a covariance of half the rank
    opposite    the points lie in one random orthant, the last one in the opposite orthant

Reference: Garg, Tsipras, Liang and Valiant, "What Can Transformers Learn In-Context? A Case Study of Simple Function
Classes", 2022.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Dims: B batch, N points, D inputs, H hidden units.

FAMILIES = ("linear", "sparse", "quadratic", "relu_network", "decision_tree")
INPUTS = ("normal", "half", "opposite")


class Scale(NamedTuple):
  """What may change without a new compilation, all arrays.

  Attributes:
    root_DD: L.
    dims: coordinates that are not 0; a whole number, traced in a curriculum.
    weight: factor on f.
    noise: variance of what is added to y.
  """

  root_DD: jax.Array
  dims: jax.Array
  weight: jax.Array
  noise: jax.Array


class Points(NamedTuple):
  """A batch of prompts: inputs, f, y = f + noise, and w of the linear families (else zeros)."""

  x_BND: jax.Array
  f_BN: jax.Array
  y_BN: jax.Array
  w_BD: jax.Array


def grown(step, start: int, stop: int, grow: int, every: int):
  """Returns min(stop, start + grow * (step // every)), the curriculum of a size; `step` may be traced."""
  return jnp.minimum(stop, start + grow * (step // every))


def draw(key_B, scale: Scale, *, points: int, family: str = "linear", inputs: str = "normal", sparsity: int = 3,
         hidden: int = 100, depth: int = 4) -> Points:
  """Draws one prompt per key; a row does not depend on the others.

  Args:
    key_B: random keys.
    scale: numbers that may be traced.
    points: N.
    family, inputs: of the file's first lines.
    sparsity: entries of w that "sparse" keeps.
    hidden: H of relu_network.
    depth: questions on a path of decision_tree.
  """
  def one(key):
    key_x, key_f, key_noise = jax.random.split(key, 3)
    x_ND = points_of(key_x, scale, points, inputs)
    f_N, w_D = respond(key_f, x_ND, scale.dims, family, sparsity, hidden, depth)
    f_N, w_D = scale.weight * f_N, scale.weight * w_D
    return x_ND, f_N, f_N + jnp.sqrt(scale.noise) * jax.random.normal(key_noise, (points,)), w_D
  return Points(*jax.vmap(one)(key_B))


def points_of(key, scale: Scale, points: int, inputs: str):
  """Returns the inputs [N, D] of one prompt."""
  D = scale.root_DD.shape[0]
  key_z, key_sign = jax.random.split(key)
  x_ND = jnp.einsum("de,ne->nd", scale.root_DD, jax.random.normal(key_z, (points, D)))
  if inputs == "opposite":
    sign_1D = jnp.where(jax.random.bernoulli(key_sign, shape=(1, D)), 1.0, -1.0)
    last_N1 = jnp.where(jnp.arange(points) == points - 1, -1.0, 1.0)[:, None]
    x_ND = jnp.abs(x_ND) * sign_1D * last_N1
  kept = (scale.dims + 1) // 2 if inputs == "half" else scale.dims
  return jnp.where((jnp.arange(D) < kept)[None], x_ND, 0.0)


def respond(key, x_ND, dims, family: str, sparsity: int = 3, hidden: int = 100, depth: int = 4):
  """Draws a function; returns (f of every x, weights w_D of a linear one or zeros)."""
  D = x_ND.shape[1]
  key_in, key_out = jax.random.split(key)
  if family in ("linear", "sparse", "quadratic"):
    w_D = jnp.where(jnp.arange(D) < dims, jax.random.normal(key_in, (D,)), 0.0)
    if family == "quadratic":
      return jnp.square(x_ND) @ w_D / 3**0.5, jnp.zeros(D)
    if family == "sparse":
      luck_D = jnp.where(jnp.arange(D) < dims, jax.random.uniform(key_out, (D,)), 2.0)
      w_D = jnp.where(jnp.argsort(jnp.argsort(luck_D)) < sparsity, w_D, 0.0)
    return x_ND @ w_D, w_D
  if family == "relu_network":
    inner_HD, outer_H = jax.random.normal(key_in, (hidden, D)), jax.random.normal(key_out, (hidden,))
    return (2 / hidden) ** 0.5 * (jax.nn.relu(x_ND @ inner_HD.T) @ outer_H), jnp.zeros(D)
  asked = (jax.random.uniform(key_in, (2**depth - 1,)) * dims).astype(jnp.int32)
  at_N = jnp.zeros(len(x_ND), jnp.int32)
  for _ in range(depth):  # nodes are numbered by level: the children of i are 2 i + 1 and 2 i + 2
    answer_N = jnp.take_along_axis(x_ND, asked[at_N][:, None], axis=1)[:, 0] > 0
    at_N = 2 * at_N + 1 + answer_N
  return jax.random.normal(key_out, (2**depth,))[at_N - (2**depth - 1)], jnp.zeros(D)
