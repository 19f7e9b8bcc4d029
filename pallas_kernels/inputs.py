"""Random and adversarial inputs for benches and error tables."""

from typing import NamedTuple

import jax
import numpy as np

# Dims: B batch, T tokens, H heads, K key width, V value width.

CASES = ("random", "correlated", "identical", "gates 0", "gates at floor", "hard resets")


class Arrays(NamedTuple):
  """Positional arguments of `chunk_recurrence`."""

  q: jax.Array
  k: jax.Array
  v: jax.Array
  g: jax.Array | None
  beta: jax.Array | None


def draw(decay, delta, B, T, H, K, V, *, dtype="float32", case="random", seed=0) -> Arrays:
  """Draws unit keys, normal queries and values, and gates.

  Args:
    decay: "none", "scalar" or "vector".
    delta: whether beta is drawn.
    B, T, H, K, V: sizes; every value head has its own key head.
    dtype: of q, k and v. They are rounded to it, so a wider reference may start from the same numbers.
    case: "random" (beta to 1); "correlated" and "identical" keys with beta to 2 and at 1.9; g all 0;
      g at -10, the floor of the exact range; "hard resets" of g = -60 every 37 tokens.
    seed: of numpy's generator.
  """
  random = np.random.default_rng(seed)
  q, k = random.standard_normal((2, B, T, H, K))
  v = random.standard_normal((B, T, H, V))
  common = random.standard_normal((B, 1, H, K))
  if case == "correlated":
    k = k + 3.0 * common
  if case == "identical":
    k = np.broadcast_to(common, k.shape)
  k = k / np.linalg.norm(k, axis=-1, keepdims=True)
  shape = {"none": None, "scalar": (B, T, H), "vector": (B, T, H, K)}[decay]
  g = beta = None
  if shape:
    g = {"gates 0": np.zeros(shape), "gates at floor": np.full(shape, -10.0)}.get(
        case, random.uniform(-0.2, 0.0, shape))
    if case == "hard resets":
      g[:, ::37] = -60.0
    g = g.astype(np.float32)
  if delta:
    beta = {"correlated": random.uniform(0, 2, (B, T, H)), "identical": np.full((B, T, H), 1.9)}.get(
        case, random.uniform(0, 1, (B, T, H))).astype(np.float32)
  cast = lambda x: jax.numpy.asarray(x.astype(np.float32), dtype)
  return Arrays(cast(q), cast(k), cast(v), g, beta)
