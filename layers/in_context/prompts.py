"""Prompts of in-context regression, drawn on the device, and the token sequences made of them.

    x_i = L z_i, z of independent coordinates     w = W z'        y_i = f(x_i) + sqrt(noise) z''

    linear          f(x) = w . x
    relu_network    f(x) = sqrt(2 / H) v . relu(V x), v and V standard normal: its law does not change under rotations
                    of x nor with its sign
    sinusoid        f(x) = a sin(x_1 + phase), a ~ U(0.1, 0.5), phase ~ U(0, pi)

A prompt is one container; `concatenated` and `interleaved` encode it. Scale, noise and covariance are arrays,
so one compiled program serves all of them.

References: von Oswald et al., "Transformers learn in-context by gradient descent", 2023; Mahankali et al., 2024,
Theorem 3 (relu_network); Garg et al., "What Can Transformers Learn In-Context?", 2022 (interleaved).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from layers.in_context import functions

# Dims: B batch, N pairs, D inputs, H hidden units, T tokens.

RESPONSES = ("linear", "relu_network", "sinusoid")
COORDINATES = ("normal", "uniform")


class Law(NamedTuple):
  """What a prompt is drawn from, all arrays.

  Attributes:
    root_DD: L, with L L^T the covariance of x where z has variance 1.
    weight_DD: W.
    noise: variance of what is added to y.
    spread: 0; or 1 multiplies every coordinate of x by the root of an Exp(1) number of its prompt's own.
  """

  root_DD: jax.Array
  weight_DD: jax.Array
  noise: jax.Array
  spread: jax.Array


class Prompts(NamedTuple):
  """A batch: pairs (x, y), a query, its target without noise, and the weights of a linear response (else zeros)."""

  x_BND: jax.Array
  y_BN: jax.Array
  query_BD: jax.Array
  target_B: jax.Array
  w_BD: jax.Array


def law(d: int, *, scale=1.0, noise=0.0, spread=0.0, root_DD=None, weight_DD=None) -> Law:
  """Returns a Law; covariances are the identity unless given, `scale` multiplies x."""
  wide = lambda matrix: jnp.eye(d) if matrix is None else jnp.asarray(matrix, jnp.float32)
  return Law(jnp.asarray(scale, jnp.float32) * wide(root_DD), wide(weight_DD), jnp.asarray(noise, jnp.float32),
             jnp.asarray(spread, jnp.float32))


def draw(key_B, law: Law, *, n: int, coordinates: str = "normal", response: str = "linear",
         hidden: int = 100) -> Prompts:
  """Draws one prompt per key.

  Args:
    key_B: random keys; a row does not depend on the others.
    law: covariances and noise.
    n: pairs.
    coordinates: of z, "normal" or "uniform" on (-1/2, 1/2).
    response: f, of the file's first lines.
    hidden: H of relu_network.
  """
  return Prompts(*jax.vmap(lambda key: _one(key, law, n, coordinates, response, hidden))(key_B))


def _one(key, law, n, coordinates, response, hidden):
  d = law.root_DD.shape[0]
  key_z, key_spread, key_w, key_noise = jax.random.split(key, 4)
  sample = jax.random.normal if coordinates == "normal" else (
      lambda key, shape: jax.random.uniform(key, shape, minval=-0.5, maxval=0.5))
  own_D = jnp.sqrt(jnp.where(law.spread > 0, jax.random.exponential(key_spread, (d,)), 1.0))
  x_ND = jnp.einsum("de,ne->nd", law.root_DD, sample(key_z, (n + 1, d))) * own_D[None]
  f_N, w_D = _respond(key_w, x_ND, law.weight_DD, response, hidden)
  y_N = f_N[:n] + jnp.sqrt(law.noise) * jax.random.normal(key_noise, (n,))
  return x_ND[:n], y_N, x_ND[n], f_N[n], w_D


def _respond(key, x_ND, weight_DD, response, hidden):
  """Returns (f of every x, weights w_D or zeros)."""
  d = x_ND.shape[1]
  if response == "linear":
    w_D = weight_DD @ jax.random.normal(key, (d,))
    return x_ND @ w_D, w_D
  if response == "relu_network":
    return functions.respond(key, x_ND, d, response, hidden=hidden)
  key_in, key_out = jax.random.split(key)
  height = jax.random.uniform(key_in, minval=0.1, maxval=0.5)
  phase = jax.random.uniform(key_out, maxval=jnp.pi)
  return height * jnp.sin(x_ND[:, 0] + phase), jnp.zeros(d)


def concatenated(prompts: Prompts):
  """Returns tokens [B, n + 1, d + 1]: (x_i, y_i), and the query (x_q, 0) at the end."""
  pairs_BNT = jnp.concatenate([prompts.x_BND, prompts.y_BN[..., None]], axis=2)
  query_BT = jnp.pad(prompts.query_BD, ((0, 0), (0, 1)))
  return jnp.concatenate([pairs_BNT, query_BT[:, None]], axis=1)


def interleaved(prompts: Prompts):
  """Returns tokens [B, 2 n + 1, d + 1]: (x_1, 0), (0, y_1), (x_2, 0), ..., (x_q, 0)."""
  B, n, d = prompts.x_BND.shape
  xs_BNT = jnp.pad(prompts.x_BND, ((0, 0), (0, 0), (0, 1)))
  ys_BNT = jnp.pad(prompts.y_BN[..., None], ((0, 0), (0, 0), (d, 0)))
  turns_BTF = jnp.stack([xs_BNT, ys_BNT], axis=2).reshape(B, 2 * n, d + 1)
  return jnp.concatenate([turns_BTF, jnp.pad(prompts.query_BD, ((0, 0), (0, 1)))[:, None]], axis=1)
