"""x * w for a w that is broadcast against x: a gain per feature, or one factor per row.

    y = x w,    dx = dy w,    dw = sum of x dy over the axes along which w has size 1

It has no forward mode. Its reason is the sum, which differentiation would leave to a slow
form on a CPU: layers/sums.py.
"""

import jax
import jax.numpy as jnp

from layers import sums


@jax.custom_vjp
def broadcast_product(x, w):
  """Returns x * w, both of one dtype.

  Args:
    x: any array.
    w: of as many axes, each as long as that of x or 1.
  """
  return x * w


def _backward(kept, dy):
  x, w = kept
  xdy = x * dy
  axes = tuple(i for i, (whole, own) in enumerate(zip(x.shape, w.shape)) if own != whole)
  if axes == (x.ndim - 1,):
    return dy * w, sums.over_features(xdy)[..., None]
  if axes and w.size == w.shape[-1] == x.shape[-1]:
    return dy * w, sums.over_rows(xdy).reshape(w.shape)
  return dy * w, jnp.sum(xdy, axes, keepdims=True)


broadcast_product.defvjp(lambda x, w: (x * w, (x, w)), _backward)
