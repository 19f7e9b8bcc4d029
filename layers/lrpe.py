"""LRPE: relative positions for linear attention, at the price of twice as many features.

    f(x)_t = [x cos(t r), x sin(t r)]        f(q)_t . f(k)_s = sum_i q_i k_i cos((t - s) r_i)

One rate r per head and channel, in radians per token. Only the distance of two tokens counts, and
queries and keys stay K numbers times a known factor, so sums over keys can be kept.

References: Qin et al., "Linearized Relative Positional Encoding", 2023; its diagonal form in
Qin et al., "Scaling TransNormer to 175 Billion Parameters", 2023 (LRPE-d).
"""

import jax.numpy as jnp


def rates(theta: float):
  """Returns the initializer of the rates: theta^(-i / K) for channel i = 0..K-1, alike in all heads."""
  def init(key, shape, dtype=jnp.float32):
    del key
    row_K = theta ** (-jnp.arange(shape[-1], dtype=dtype) / shape[-1])
    return jnp.broadcast_to(row_K.reshape((1,) * (len(shape) - 1) + row_K.shape), shape)
  return init


def features(x_BTHK, position_BT, rate_HK):
  """Returns f(x), [B,T,H,2K], with float32 angles and x's dtype.

  Args:
    x_BTHK: queries or keys.
    position_BT: integer positions.
    rate_HK: r, in radians per token.
  """
  angle_BTHK = position_BT[..., None, None].astype(jnp.float32) * rate_HK.astype(jnp.float32)[None, None]
  x32_BTHK = x_BTHK.astype(jnp.float32)
  both = x32_BTHK * jnp.cos(angle_BTHK), x32_BTHK * jnp.sin(angle_BTHK)
  return jnp.concatenate(both, axis=-1).astype(x_BTHK.dtype)
