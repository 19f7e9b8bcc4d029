"""Scores of a chunk whose decay differs per key channel, on whole tiles inside a TPU kernel.

    s_ij = sum_d x_id k_jd exp(G_id - G_jd)     i >= j

A pair (i, j) is in the lower left quarter of exactly one block of 2s rows, s = 1, 2, 4 .. C/2. There

    G_i - G_j = (sum of g from the middle of the block to i) + (sum of g after j up to the middle)

two sums of at most s log decays each, both <= 0. So for each s one exponential per row and channel and
one masked matmul over the whole chunk give all its pairs: nothing is formed entry by entry, no exponent
is positive however strong the decay, and no cumulative sums are subtracted from each other. The sums of
size 2s follow from those of size s by exchanging the totals of neighbouring blocks.
"""

from jax import lax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.chunk_recurrence.tpu_matrix import dot, Positions

# Dims: H heads of a grid step, C rows of a chunk, K key width.


def decays(g_HCK, place: Positions):
  """Decay factors of a chunk.

  Returns:
    (for s = 1, 2, 4 .. C/2 the factor [H,C,K] of a row seen from the middle of its block of 2s rows,
    factor from the entry of the chunk to a row, factor from a row to its exit, total log decay_H1K).
  """
  C = g_HCK.shape[1]
  until, after = g_HCK, jnp.zeros_like(g_HCK)  # sums up to a row and after it, inside blocks of s rows
  levels = []
  for p in range((C - 1).bit_length()):
    late = ((place.row_C1 >> p) & 1)[None] == 1
    levels.append(jnp.exp(jnp.where(late, until, after)))
    other = _neighbour(until + after, 1 << p)
    until, after = until + jnp.where(late, other, 0.0), after + jnp.where(late, 0.0, other)
  return tuple(levels), jnp.exp(until), jnp.exp(after), until[:, place.exit:place.exit + 1]


def scores(q_HCK, k_HCK, levels, delta, place: Positions, fed):
  """(q against k, k against k or None): right on and below the diagonal, undefined above it."""
  q, k = q_HCK.astype(jnp.float32), k_HCK.astype(jnp.float32)
  mix, erase = dot("nt", q_HCK, k_HCK, fed), None
  for p, decay in enumerate(levels):
    here = place.distance_1CC >= (1 << p)
    k_level = (k * decay).astype(fed)
    mix = jnp.where(here, dot("nt", q * decay, k_level, fed), mix)
    if delta:
      level = dot("nt", k_level, k_level, fed)
      erase = level if erase is None else jnp.where(here, level, erase)
  if delta and erase is None:
    erase = jnp.zeros_like(mix)
  return mix, erase


def score_gradients(q_HCK, k_HCK, levels, dmix_HCC, derase_HCC, place: Positions, scale, fed):
  """(dq without scale, dk as reading row or None, dk as written row) of `scores` below the diagonal."""
  q, k = q_HCK.astype(jnp.float32), k_HCK.astype(jnp.float32)
  dq, dk_col = jnp.zeros_like(q), jnp.zeros_like(k)
  dk_row = None if derase_HCC is None else jnp.zeros_like(k)
  for p, decay in enumerate(levels):
    here = (place.distance_1CC >> p) == 1
    q_level, k_level = (q * decay).astype(fed), (k * decay).astype(fed)
    d = jnp.where(here, dmix_HCC, 0.0).astype(fed)
    dq += decay * dot("nn", d, k_level, fed)
    added = scale * dot("tn", d, q_level, fed)
    if derase_HCC is not None:
      d = jnp.where(here, derase_HCC, 0.0).astype(fed)
      dk_row += decay * dot("nn", d, k_level, fed)
      added += dot("tn", d, k_level, fed)
    dk_col += decay * added
  return dq, dk_row, dk_col


def sum_to_exit(x_HCK, place: Positions):
  """Sum over this and all later positions of the chunk."""
  C = x_HCK.shape[1]
  for p in range((C - 1).bit_length()):
    s = 1 << p
    shift = s if place.reverse else -s
    x_HCK += jnp.where((place.row_C1 < C - s)[None], _roll(x_HCK, shift), 0.0)
  return x_HCK


def _neighbour(x_HCK, s):
  """Row r XOR s in row r."""
  odd = (lax.broadcasted_iota(jnp.int32, (x_HCK.shape[1], 1), 0) & s)[None] != 0
  return jnp.where(odd, _roll(x_HCK, s), _roll(x_HCK, -s))


def _roll(x_HCK, shift):
  C = x_HCK.shape[1]
  return pltpu.roll(x_HCK, shift % C, axis=1) if shift % C else x_HCK
