"""Numbers as tuples of real arrays, (re,) or (re, im): Pallas knows no complex ones."""

from jax import lax
import jax.numpy as jnp

DTYPES = ("float32", "complex64")


def refuse(dtype) -> str | None:
  """Reason why numbers of `dtype` cannot be float32 planes, or None."""
  wide = jnp.promote_types(dtype, jnp.float32)
  if wide not in DTYPES:
    return f"the kernels compute in {' and '.join(DTYPES)}, {wide} would lose digits; cast a, x and h0"
  return None


def split(x) -> tuple:
  """An array as planes."""
  return (jnp.real(x), jnp.imag(x)) if jnp.iscomplexobj(x) else (x,)


def join(planes):
  """Planes as an array."""
  return lax.complex(*planes) if len(planes) == 2 else planes[0]


def count(dtype) -> int:
  """Planes of an array of `dtype`."""
  return 2 if jnp.issubdtype(dtype, jnp.complexfloating) else 1


def add(a, b) -> tuple:
  return tuple(x + y for x, y in zip(a, b))


def multiply(a, b) -> tuple:
  if len(a) == 1:
    return (a[0] * b[0],)
  return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]
