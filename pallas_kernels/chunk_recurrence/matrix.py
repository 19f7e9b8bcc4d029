"""Small triangular matrices: masks, block assembly and the solve of the delta rule.

The inverse of a unit lower triangular matrix is built by merging inverses of neighbouring diagonal
blocks: with X, Y their inverses and a_21 the block below the first, the corner of the merged inverse is
-Y a_21 X. Every intermediate is an entry of a true inverse, and powers of a never appear: the product
(I - a)(I + a^2)(I + a^4)... is 20 orders of magnitude off on repeated keys with beta near 2.

All functions take any leading axes, none inside a kernel.
"""

import jax
from jax import lax
import jax.numpy as jnp

# Dims: C rows, V columns of a right-hand side.


def dot(a, b):
  """a @ b with at least float32 accumulation; float32 operands are never rounded to bfloat16."""
  precision = lax.Precision.HIGHEST if a.dtype.itemsize >= 4 else lax.Precision.DEFAULT
  wide = jnp.promote_types(a.dtype, jnp.float32)
  # XLA's CPU matmul library aborts the process at rank 8, which a vmap or two would reach.
  merge = lambda x: x if x.ndim <= 3 else x.reshape(-1, *x.shape[-2:])
  ab = jnp.matmul(merge(a), merge(b), precision=precision, preferred_element_type=wide)
  return ab.reshape(*a.shape[:-2], *ab.shape[-2:])


def transpose(x):
  return jnp.swapaxes(x, -1, -2)


def solve(erase_CC, r_CV):
  """(I + erase)^-1 r for strictly lower triangular `erase`, in the dtype of `erase`."""
  return _solve(erase_CC, r_CV)


@jax.custom_vjp
def _solve(erase_CC, r_CV):
  return dot(unit_lower_inverse(erase_CC), r_CV)


def _solve_forward(erase_CC, r_CV):
  inverse_CC = unit_lower_inverse(erase_CC)
  u_CV = dot(inverse_CC, r_CV)
  return u_CV, (inverse_CC, u_CV)


def _solve_backward(residuals, du_CV):
  # A rule on the solve multiplies by the inverse once; differentiating the inverse would do it twice.
  inverse_CC, u_CV = residuals
  dr_CV = dot(transpose(inverse_CC), du_CV)
  return -lower(dot(dr_CV, transpose(u_CV)), strict=True), dr_CV


_solve.defvjp(_solve_forward, _solve_backward)


def unit_lower_inverse(a_CC, base=16):
  """(I + a)^-1 for strictly lower triangular a, by merging inverses of diagonal blocks.

  With X, Y the inverses of two neighbouring blocks and a_21 the block below the first, the merged
  inverse has -Y a_21 X in its corner. Every intermediate is an entry of a true inverse, and powers of
  a never appear: the product (I - a)(I + a^2)(I + a^4)... is 20 orders of magnitude off on repeated keys.
  """
  C = a_CC.shape[-1]
  if C <= base:
    return masked_merge(a_CC)
  h = C // 2
  x_y = unit_lower_inverse(jnp.stack([a_CC[..., :h, :h], a_CC[..., h:, h:]]), base)
  x, y = x_y[0], x_y[1]
  return assemble(x, -dot(dot(y, a_CC[..., h:, :h]), x), y)


def masked_merge(a_CC):
  """The same merge on the whole matrix at once: masks instead of slices, for small or tiled blocks."""
  row, col = iotas(a_CC.shape)
  inverse_CC = (row == col).astype(a_CC.dtype)
  for p in range((a_CC.shape[-1] - 1).bit_length()):
    corner = ((row >> (p + 1)) == (col >> (p + 1))) & ((row >> p) > (col >> p))
    below_CC = jnp.where(corner, a_CC, 0.0)
    # At p = 0 the inverse is still the identity.
    inverse_CC -= below_CC if p == 0 else dot(dot(inverse_CC, below_CC), inverse_CC)
  return inverse_CC


def assemble(upper_left, lower_left, lower_right):
  """The block lower triangular matrix of its three quarters."""
  top = jnp.concatenate([upper_left, jnp.zeros_like(upper_left)], axis=-1)
  return jnp.concatenate([top, jnp.concatenate([lower_left, lower_right], axis=-1)], axis=-2)


def lower(x_CC, same_CC=None, *, strict, other=0.0):
  """x on and below the diagonal (below only if `strict`) where `same_CC` holds, `other` elsewhere."""
  row, col = iotas(x_CC.shape)
  mask = row > col if strict else row >= col
  return jnp.where(mask if same_CC is None else mask & same_CC, x_CC, other)


def iotas(shape):
  """Row and column numbers of the last two axes; at least 2-D, as kernels need them."""
  rank = len(shape)
  return (lax.broadcasted_iota(jnp.int32, shape, rank - 2),
          lax.broadcasted_iota(jnp.int32, shape, rank - 1))
