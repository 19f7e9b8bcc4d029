"""The meaning of the recurrence: one token at a time, in any dtype. The oracle of every test.

Per value head, with state S (K x V), log decay g_t <= 0 and write strength beta_t in [0, 2]:

    S <- Diag(exp g_t) S                       decay (nothing for g = None)
    u_t = beta_t (v_t - S^T k_t)               delta rule; u_t = v_t without beta
    S <- S + k_t u_t^T
    o_t = scale S^T q_t                        written first, read second

Reference: Yang, Kautz, Hatamizadeh, "Gated Delta Networks", 2025, equation 10; without beta this is
the gated linear attention of Yang et al., 2024, equation 3.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence.plan import Inputs, Plan

# Dims: B batch, T tokens, H value heads, G key heads, K key width, V value width.


def run(plan: Plan, inputs: Inputs):
  """Runs the recurrence by a scan over tokens; plain autodiff goes through it.

  Args:
    plan: scale and reverse are read, the rest follows from the inputs.
    inputs: canonical arrays.

  Returns:
    (o_BTHV in v's dtype, final state_BHKV in the dtype of the state).
  """
  dtype = inputs.state.dtype
  q, k, v, g, beta, state, segments = inputs
  groups = v.shape[2] // k.shape[2]
  q, k = (jnp.repeat(x.astype(dtype), groups, axis=2) for x in (q, k))
  if g is not None and g.ndim == 3:
    g = g[..., None]
  tokens = (q * plan.scale, k, v.astype(dtype), g, beta, segments)
  tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)
  carried_B = None
  if segments is not None:
    carried_B = segments[:, -1 if plan.reverse else 0]

  def step(carry, token):
    S_BHKV, carried_B = carry
    q_BHK, k_BHK, v_BHV, g, beta_BH, segment_B = token
    if segment_B is not None:
      same_B = segment_B == carried_B
      S_BHKV = jnp.where(same_B[:, None, None, None], S_BHKV, 0.0)
    if g is not None:
      S_BHKV = jnp.exp(g)[..., None] * S_BHKV
    if beta_BH is not None:
      v_BHV = beta_BH[..., None] * (v_BHV - _read(k_BHK, S_BHKV))
    S_BHKV = S_BHKV + k_BHK[..., :, None] * v_BHV[..., None, :]
    return (S_BHKV, segment_B), _read(q_BHK, S_BHKV)

  (state, _), o_TBHV = jax.lax.scan(step, (state, carried_B), tokens, reverse=plan.reverse)
  return jnp.moveaxis(o_TBHV, 0, 1).astype(v.dtype), state


def _read(x_BHK, S_BHKV):
  return jnp.einsum("bhk,bhkv->bhv", x_BHK, S_BHKV, precision=jax.lax.Precision.HIGHEST)
