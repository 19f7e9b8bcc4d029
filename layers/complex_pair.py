"""Complex numbers as pairs of real ones on a last axis of 2, as parameters and states hold them.

Optimizers, checkpoints and gradients of losses then meet real arrays only.
"""

import jax
import jax.numpy as jnp

from layers.dense import product

# Dims: B batch, T tokens, D real features, P complex ones.


def join(pair):
  """Returns the complex numbers of pairs [..., 2]."""
  return jax.lax.complex(pair[..., 0], pair[..., 1])


def split(z):
  """Returns the pairs [..., 2] of complex numbers."""
  return jnp.stack([z.real, z.imag], axis=-1)


def of_real(b_PD2, u_BTD):
  """Returns the complex numbers (b u)_BTP of real u."""
  return join(product(u_BTD, jnp.transpose(b_PD2, (1, 0, 2))))


def real_of_product(c_DP2, h_BTP):
  """Returns Re(c h)_BTD, from real products only."""
  conjugate = jnp.array([1.0, -1.0])
  c_P2D = jnp.transpose(c_DP2 * conjugate[None, None], (1, 2, 0))
  return product(split(h_BTP), c_P2D, inputs=2)
