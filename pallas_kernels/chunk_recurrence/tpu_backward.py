"""The gradients of one chunk of a few heads, inside a TPU kernel.

With cotangents dO of the output and dS of the exit state:

    dU = scale mix^T dO + k_out dS            without the delta rule dv = dU, else
    r = (I + erase)^-T dU,  dv = beta r,  derase = -strict_lower(r u^T),  dk_in = -dv S^T
    dmix = lower(dO u^T),   dS_0 = keep dS + q_in^T dO - k_in^T dv
    dG = q dq + k dk_row - k dk_col           dk_row: k as the reading row, dk_col: as the written one

Reference: as chunk.py; dG is the identity of Yang et al., "Gated Linear Attention Transformers with
Hardware-Efficient Training", 2024, appendix C, kept inside a chunk and in float32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence import tpu_scores
from pallas_kernels.chunk_recurrence.tpu_chunk import after, before, Gates, Rows, times, write
from pallas_kernels.chunk_recurrence.tpu_matrix import dot, fine_dot, Positions

# Dims: H heads of a grid step, C rows of a chunk, K key width, V value width.


class Gradients(NamedTuple):
  """Cotangents in float32; gates are None where there are none."""

  q_HCK: jax.Array
  k_HCK: jax.Array
  v_HCV: jax.Array
  gate: jax.Array | None  # [H,C,1] of the cumulative decay, or [H,C,K] of the decay itself
  gate_exit_H11: jax.Array | None  # what belongs to the last row of `gate` if that is cumulative
  beta_HC1: jax.Array | None
  S_HKV: jax.Array


def backward(rows: Rows, gate: Gates, S_HKV, do_HCV, dS_HKV, place: Positions, scale: float, fed: Any):
  """Cotangents of one chunk.

  Args:
    rows, gate, S_HKV, place, scale, fed: as `forward`.
    do_HCV: cotangent of the output.
    dS_HKV: cotangent of the exit state, float32.
  """
  q, k, v = rows
  mix, u, solved = write(rows, gate, S_HKV, place, fed)
  du = scale * dot("tn", mix, do_HCV, fed)
  du += after(gate, dot("nn", before(gate, k, gate.leave), dS_HKV, fed), gate.leave)
  dk_out = times(gate.leave, dot("nt", u, dS_HKV, fed))
  dmix = jnp.where(gate.mask_1CC, dot("nt", do_HCV, u, fed), 0.0)
  dq = times(gate.enter, dot("nt", do_HCV, S_HKV, fed))
  dS = scale * dot("tn", before(gate, q, gate.enter), after(gate, do_HCV, gate.enter), fed)
  dS += times(gate.keep, dS_HKV)

  derase = dbeta = dk_in = None
  dv = du
  if solved is not None:
    inverse_HCC, erase_HCC, miss = solved
    r = fine_dot("tn", inverse_HCC, du, fed)
    dv = gate.beta_HC1 * r
    dk_in = -times(gate.enter, dot("nt", dv, S_HKV, fed))
    dS -= dot("tn", before(gate, k, gate.enter), after(gate, dv, gate.enter), fed)
    derase = jnp.where((place.distance_1CC > 0) & gate.mask_1CC, dot("nt", r, u, fed), 0.0)
    dbeta = (jnp.sum(r * miss, axis=-1, keepdims=True)
             - jnp.sum(derase * erase_HCC, axis=-1, keepdims=True))
    derase = derase * -gate.beta_HC1

  gated = gate.pairs_HCC is not None or gate.levels is not None
  dq_near, dk_row, dk_col = _score_gradients(rows, gate, dmix, derase, place, scale, fed)
  dq = scale * (dq + dq_near)
  if dk_in is not None:
    dk_row = dk_in if dk_row is None else dk_row + dk_in
  dgate = exit_gate = None
  if gated:
    # Gates do not touch diagonal scores nor the write of the last row: their gradients cancel, but
    # not when rounded beside gradients as small as exp(-10), so they join dq and dk afterwards.
    q_wide, k_wide = q.astype(jnp.float32), k.astype(jnp.float32)
    out = jnp.where((place.row_C1 == q.shape[1] - 1)[None], 0.0, k_wide * dk_out)
    dgate = q_wide * dq - k_wide * dk_col - out
    if dk_row is not None:
      dgate += k_wide * dk_row
    kept = times(gate.keep, S_HKV * dS_HKV)
    if gate.levels is None:
      dgate = jnp.sum(dgate, axis=-1, keepdims=True)
      exit_gate = _sum(kept) + _sum(out)
    else:
      total_H1K = (jnp.swapaxes(jnp.sum(kept, axis=-1, keepdims=True), 1, 2)
                   + jnp.sum(out, axis=-2, keepdims=True))
      dgate = tpu_scores.sum_to_exit(dgate, place) + total_H1K
    own_HC1 = scale * jnp.sum(do_HCV.astype(jnp.float32) * u.astype(jnp.float32), axis=-1, keepdims=True)
    dq += own_HC1 * k_wide
    dk_col += own_HC1 * q_wide
  dk_col += dk_out
  dk = dk_col if dk_row is None else dk_col + dk_row
  return Gradients(dq, dk, dv, dgate, exit_gate, dbeta, dS)


def _score_gradients(rows, gate, dmix, derase, place, scale, fed):
  """(dq without scale, dk_row or None, dk_col) of `_scores`, without the diagonal if there are gates."""
  q, k, _ = rows
  if gate.levels is not None:
    return tpu_scores.score_gradients(q, k, gate.levels, dmix, derase, place, scale, fed)
  if gate.pairs_HCC is not None:
    dmix = jnp.where(place.distance_1CC > 0, dmix * gate.pairs_HCC, 0.0)
  dq, dk_row = dot("nn", dmix, k, fed), None
  dk_col = scale * dot("tn", dmix, q, fed)
  if derase is not None:
    derase = times(gate.pairs_HCC, derase)
    dk_row = dot("nn", derase, k, fed)
    dk_col += dot("tn", derase, k, fed)
  return dq, dk_row, dk_col


def _sum(x_HKV):
  return jnp.sum(jnp.sum(x_HKV, axis=-1, keepdims=True), axis=-2, keepdims=True)
