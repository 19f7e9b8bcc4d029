"""The meaning: h_t = a_t h_{t-1} + x_t, one step at a time, differentiated by jax itself."""

import jax
import jax.numpy as jnp

# Dims: B batch, T tokens, D channels.


def run(a, x_BTD, h0_BD, reverse):
  """Scans over tokens.

  Args:
    a: [B,T,D], or [D] for a factor that never changes.
    x_BTD: what is added at each step.
    h0_BD: value before the first processed token.
    reverse: whether tokens are taken last to first.

  Returns:
    h_BTD.
  """
  if a.ndim == 1:
    a = jnp.broadcast_to(a[None, None, :], x_BTD.shape)

  def step(h_BD, token):
    a_BD, x_BD = token
    h_BD = a_BD * h_BD + x_BD
    return h_BD, h_BD

  tokens = (jnp.moveaxis(a, 1, 0), jnp.moveaxis(x_BTD, 1, 0))
  _, h_TBD = jax.lax.scan(step, h0_BD, tokens, reverse=reverse)
  return jnp.moveaxis(h_TBD, 0, 1)


def before(x_BTD, fill_BD, reverse):
  """x of the token processed before each, with `fill` at the first."""
  if reverse:
    return jnp.concatenate([x_BTD[:, 1:], fill_BD[:, None]], axis=1)
  return jnp.concatenate([fill_BD[:, None], x_BTD[:, :-1]], axis=1)
