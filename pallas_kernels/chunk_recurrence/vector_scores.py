"""Scores of a chunk whose decay differs per key channel, without ever forming a large exponential.

    s_ij = sum_d x_id k_jd exp(G_id - G_jd)   for i >= j, 0 above       G non-increasing along the rows

The exponent cannot be factored over a whole chunk: exp(-G_j) overflows float32 once |G| passes 88.
So a block of rows is cut in halves. Its lower left quarter is a matmul of x exp(G_i - G_n) and
k exp(G_n - G_j) with n the first row of the lower half, both factors <= 1; its diagonal quarters are
cut again, down to `sub_block` rows, where every pair is formed entry by entry.

The backward uses dG = x dx - k dk, which holds entry by entry because G enters only next to x and k.

Reference: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2024,
section 4.3, has one level of 16-row sub-blocks; halving has log2 levels and half the exponentials.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence.matrix import assemble, dot, transpose

# Dims: C rows, K key width. Leading axes are merged into one.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def vector_scores(rows, k_CK, G_CK, sub_block):
  """Scores s_CC for each x_CK in the tuple `rows`, in the dtype of G.

  Args:
    rows: queries (and keys, for the delta rule), same shape as k.
    k_CK: keys.
    G_CK: inclusive cumulative log decay, float32 or wider.
    sub_block: largest block formed entry by entry, a power of two.
  """
  batch, (C, K) = k_CK.shape[:-2], k_CK.shape[-2:]
  merge = lambda x: x.reshape(-1, C, K)
  scores = _scores(tuple(map(merge, rows)), merge(k_CK), merge(G_CK), sub_block)
  return tuple(s.reshape(*batch, C, C) for s in scores)


def _forward(rows, k_CK, G_CK, sub_block):
  return vector_scores(rows, k_CK, G_CK, sub_block), (rows, k_CK, G_CK)


def _backward(sub_block, residuals, dscores):
  rows, k, G = residuals
  C, K = k.shape[-2:]
  merge = lambda x: x.reshape(-1, C, K)
  dscores = tuple(d.reshape(-1, C, C) for d in dscores)
  drows, dk = _gradients(tuple(map(merge, rows)), merge(k), merge(G), dscores, sub_block)
  drows, dk = tuple(d.reshape(k.shape) for d in drows), dk.reshape(k.shape)
  # Diagonal scores see no gate. Leaving them out here keeps the digits of gradients as small as exp(-10).
  dG = sum(x * dx for x, dx in zip(rows, drows)) - k * dk
  own = tuple(jnp.diagonal(d, axis1=1, axis2=2).reshape(*k.shape[:-1], 1) for d in dscores)
  drows = tuple(dx + d * k for dx, d in zip(drows, own))
  dk = dk + sum(d * x for d, x in zip(own, rows))
  return tuple(dx.astype(k.dtype) for dx in drows), dk.astype(k.dtype), dG


vector_scores.defvjp(_forward, _backward)


def _scores(rows, k, G, sub_block):
  n, C, K = k.shape
  if C <= sub_block:
    return tuple(_pairs(x, k, G) for x in rows)
  h = C // 2
  halves = lambda x: x.reshape(2 * n, h, K)
  diagonals = _scores(tuple(map(halves, rows)), halves(k), halves(G), sub_block)
  low, high = _quarter_decays(G, h)
  k_high = transpose((k[:, :h] * high).astype(k.dtype))
  scores = []
  for x, diagonal in zip(rows, diagonals):
    corner = dot((x[:, h:] * low).astype(k.dtype), k_high)
    diagonal = diagonal.reshape(n, 2, h, h)
    scores.append(assemble(diagonal[:, 0], corner, diagonal[:, 1]))
  return tuple(scores)


def _gradients(rows, k, G, dscores, sub_block):
  n, C, K = k.shape
  if C <= sub_block:
    return _pair_gradients(rows, k, G, dscores)
  h = C // 2
  halves = lambda x: x.reshape(2 * n, h, K)
  diagonals = tuple(jnp.stack([d[:, :h, :h], d[:, h:, h:]], 1).reshape(2 * n, h, h) for d in dscores)
  drows, dk = _gradients(tuple(map(halves, rows)), halves(k), halves(G), diagonals, sub_block)
  low, high = _quarter_decays(G, h)
  k_high = (k[:, :h] * high).astype(k.dtype)
  dk_high, out = 0.0, []
  for x, dx, ds in zip(rows, drows, dscores):
    corner = ds[:, h:, :h].astype(k.dtype)
    dx = dx.reshape(n, 2, h, K)
    dx_low = dx[:, 1] + low * dot(corner, k_high)
    out.append(jnp.concatenate([dx[:, 0], dx_low], axis=1))
    dk_high += dot(transpose(corner), (x[:, h:] * low).astype(k.dtype))
  dk = dk.reshape(n, 2, h, K)
  return tuple(out), jnp.concatenate([dk[:, 0] + high * dk_high, dk[:, 1]], axis=1)


def _quarter_decays(G, h):
  """exp(G_i - G_n) of the lower half and exp(G_n - G_j) of the upper, n the first row of the lower."""
  return jnp.exp(G[:, h:] - G[:, h:h + 1]), jnp.exp(G[:, h:h + 1] - G[:, :h])


def _pairs(x, k, G):
  """All scores of a small block, one column at a time: the [C,C,K] array is never in memory."""
  C = k.shape[1]
  columns = [jnp.sum(x * k[:, j:j + 1] * _decay_from(G, j), axis=-1) for j in range(C)]
  return jnp.stack(columns, axis=-1)


def _pair_gradients(rows, k, G, dscores):
  """Gradients of x and k through the pairs below the diagonal."""
  C = k.shape[1]
  if C == 1:
    return tuple(jnp.zeros_like(k, G.dtype) for _ in rows), jnp.zeros_like(k, G.dtype)
  columns = [k[:, j:j + 1] * _decay_from(G, j, strict=True) for j in range(C - 1)]
  drows = tuple(sum(ds[:, :, j:j + 1] * columns[j] for j in range(C - 1)) for ds in dscores)
  dk = sum(sum(ds[:, i:i + 1].swapaxes(1, 2) * x[:, i:i + 1] for x, ds in zip(rows, dscores))
           * _decay_to(G, i) for i in range(1, C))
  return drows, dk


def _decay_from(G, j, strict=False):
  """exp(G_i - G_j) for i >= j (i > j), zero for other rows i; the mask comes before the exponential."""
  later = jax.lax.broadcasted_iota(jnp.int32, G.shape, 1) >= j + strict
  return jnp.exp(jnp.where(later, G - G[:, j:j + 1], -jnp.inf))


def _decay_to(G, i):
  """exp(G_i - G_j) for j < i, zero for other rows j."""
  earlier = jax.lax.broadcasted_iota(jnp.int32, G.shape, 1) < i
  return jnp.exp(jnp.where(earlier, G[:, i:i + 1] - G, -jnp.inf))
