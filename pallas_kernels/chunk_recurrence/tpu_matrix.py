"""Matmuls, positions and the triangular inverse as they are written inside a TPU kernel.

The merge of matrix.py on whole tiles: with M_s the lower left quarters of all diagonal blocks of 2s rows,

    X <- X - X (a o M_s) X     s = 1, 2, 4 .. C/2

and one Newton step X <- X + X (I - (I + a) X). With bfloat16 matmuls its residual is kept accurate to
float32: X is rounded to bfloat16 first, and a is fed as the sum of two bfloat16 matrices. In float32 the
step takes the error on 64 identical keys with beta = 1.9 from 1.2e-5 to 1.9e-6 (output).
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

# Dims: H heads of a grid step, C rows of a chunk.

CONTRACT = {"nn": (2, 1), "nt": (2, 2), "tn": (1, 1)}


class Positions(NamedTuple):
  """Where the rows of a chunk stand in processing order.

  Attributes:
    row_C1: position of each row.
    distance_1CC: position of the row XOR position of the column below the diagonal, else 0: the pair is
      in the lower left quarter of a block of 2s rows exactly when s <= distance < 2s.
    lower_1CC: on and below the diagonal, in processing order.
    exit: row number of the last position.
    reverse: whether position is C - 1 - row.
  """

  row_C1: jax.Array
  distance_1CC: jax.Array
  lower_1CC: jax.Array
  exit: int
  reverse: bool


def positions(C: int, reverse: bool) -> Positions:
  row, col = (lax.broadcasted_iota(jnp.int32, (1, C, C), axis) for axis in (1, 2))
  row_C1 = lax.broadcasted_iota(jnp.int32, (C, 1), 0)
  if reverse:
    row, col, row_C1 = C - 1 - row, C - 1 - col, C - 1 - row_C1
  return Positions(row_C1, jnp.where(row > col, row ^ col, 0), row >= col, 0 if reverse else C - 1, reverse)


def dot(form: str, a, b, fed):
  """Batched a b ("nn"), a b^T ("nt") or a^T b ("tn") with operands in `fed`, result in float32."""
  a_axis, b_axis = CONTRACT[form]
  precision = lax.Precision.HIGHEST if jnp.dtype(fed).itemsize >= 4 else lax.Precision.DEFAULT
  return lax.dot_general(a.astype(fed), b.astype(fed), (((a_axis,), (b_axis,)), ((0,), (0,))),
                         precision=precision, preferred_element_type=jnp.float32)


def fine_dot(form: str, a, b, fed):
  """`dot` to about 16 bits when `fed` is bfloat16: three products of the rounded operands and their rests.

  A solve needs it: entries of the inverse alternate in sign, and on identical keys with beta = 1.9 plain
  products left errors of 7e-2 in the output and 1e-1 in gradients.
  """
  if jnp.dtype(fed).itemsize >= 4:
    return dot(form, a, b, fed)
  (a, a_rest), (b, b_rest) = ((x.astype(fed), x - x.astype(fed).astype(jnp.float32)) for x in (a, b))
  return dot(form, a, b, fed) + (dot(form, a_rest, b, fed) + dot(form, a, b_rest, fed))


def inverse(a_HCC, place: Positions, fed):
  """(I + a)^-1 for a that is zero on and above the diagonal of processing order."""
  distance = place.distance_1CC
  C = a_HCC.shape[-1]
  identity = ((distance == 0) & place.lower_1CC).astype(jnp.float32)
  x = identity - jnp.where(distance == 1, a_HCC, 0.0)
  for p in range(1, (C - 1).bit_length()):
    below = jnp.where((distance >> p) == 1, a_HCC, 0.0)
    x -= dot("nn", dot("nn", x, below, fed), x, fed)
  x = x.astype(fed)
  coarse = a_HCC.astype(fed)
  rest = identity - x.astype(jnp.float32) - dot("nn", coarse, x, fed)
  if jnp.dtype(fed).itemsize < 4:
    rest -= dot("nn", a_HCC - coarse.astype(jnp.float32), x, fed)
  return x.astype(jnp.float32) + dot("nn", x, rest, fed)
