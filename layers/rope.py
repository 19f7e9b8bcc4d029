"""Rotary position embedding: positions enter as rotations of query and key pairs.

Channels (i, i + K/2) of head width K form a plane, turned at position p by the
angle p theta^(-2i/K), i = 0..K/2-1. A query at p and a key at r then meet only
through p - r, so an offset common to all tokens changes nothing.

Reference: Su et al., "RoFormer", 2021; the half-split pairing of GPT-NeoX.
"""

import jax.numpy as jnp


def rotate(x_BTHK, position_BT, theta=10_000.0):
  """Turns every pair of channels by its token's angle, in float32; returns x's dtype.

  Args:
    x_BTHK: queries or keys; K even.
    position_BT: integer positions.
    theta: base of the geometric row of wavelengths, in tokens.

  Raises:
    ValueError: K is odd.
  """
  K = x_BTHK.shape[-1]
  if K % 2:
    raise ValueError(f"head_dim={K} must be even for rotary positions; "
                     "take an even head_dim or rope_theta=0.")
  rate_I = theta ** (-jnp.arange(K // 2, dtype=jnp.float32) / (K // 2))
  angle_BT1I = position_BT[..., None, None].astype(jnp.float32) * rate_I[None, None, None]
  cos_BT1I, sin_BT1I = jnp.cos(angle_BT1I), jnp.sin(angle_BT1I)
  a_BTHI, b_BTHI = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a_BTHI * cos_BT1I - b_BTHI * sin_BT1I,
                            a_BTHI * sin_BT1I + b_BTHI * cos_BT1I], axis=-1)
  return turned.astype(x_BTHK.dtype)
