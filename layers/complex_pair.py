"""Complex numbers as pairs of real ones on a last axis of 2, as parameters and states hold them.

Optimizers, checkpoints and gradients of losses then meet real arrays only.
"""

import jax
import jax.numpy as jnp


def join(pair):
  """Returns the complex numbers of pairs [..., 2]."""
  return jax.lax.complex(pair[..., 0], pair[..., 1])


def split(z):
  """Returns the pairs [..., 2] of complex numbers."""
  return jnp.stack([z.real, z.imag], axis=-1)


def real_of_product(c_DP2, h_BTP):
  """Returns Re(c h)_BTD, from real products only."""
  conjugate = jnp.array([1.0, -1.0])
  return jnp.einsum("dpz,btpz->btd", c_DP2 * conjugate[None, None], split(h_BTP))
