"""Linear attention with any decay and with or without the delta rule: the one public call.

    S_t = (I - beta_t k_t k_t^T) Diag(exp g_t) S_{t-1} + beta_t k_t v_t^T     (delta rule)
    S_t =                        Diag(exp g_t) S_{t-1} +        k_t v_t^T     (beta = None)
    o_t = scale S_t^T q_t

See reference.py for the meaning, chunk.py for the chunked algebra, backends.py for what runs where.
"""

import dataclasses
import functools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from pallas_kernels import choice, compat
from pallas_kernels.chunk_recurrence import backends, check, reference
from pallas_kernels.chunk_recurrence.plan import default_chunk, default_group, Inputs, Plan

# Dims: B batch, T tokens, H value heads, G key heads, K key width, V value width, N chunks.


def chunk_recurrence(q, k, v, g=None, beta=None, *, scale=None, initial_state=None, segment_ids=None,
                     reverse=False, return_final_state=False, chunk=None, backend="auto",
                     backward_backend=None, precision="mixed", save_states="auto", num_heads=None,
                     num_key_heads=None):
  """Runs the recurrence over whole sequences; differentiable in every floating array.

  Args:
    q, k: [B,T,G,K]. Key head i serves the value heads i H/G to (i + 1) H/G - 1.
    v: [B,T,H,V], same dtype as q and k.
    g: log decay in nats, <= 0: None, [H], [B,T,H] or [B,T,H,K].
    beta: write strength in [0, 2], [B,T,H]; None switches the delta rule off.
    scale: factor on the queries; None is K**-0.5.
    initial_state: [B,H,K,V] for the first processed segment; None is zero.
    segment_ids: integers [B,T]. A run of equal ids is a sequence of its own; tokens with negative ids
      are skipped: they write nothing and read zero.
    reverse: takes the tokens last to first.
    return_final_state: whether the state after the last processed token is returned too.
    chunk: tokens per chunk, a power of two; None is the measured default.
    backend: "auto", "reference", "xla", "pallas_tpu", "pallas_gpu" or "interpret".
    backward_backend: the same for the gradients; None is `backend`.
    precision: "mixed" feeds matmuls in q's dtype, "highest" in at least float32.
    save_states: "save" (and "auto") keeps one state per chunk for the backward, named "chunk_states"
      for remat policies; "recompute" keeps none and runs the states again.
    num_heads: H when q, k, v (and a per-channel g) are flat, [B,T,heads*width]; so is o then.
    num_key_heads: G for flat inputs; None is `num_heads`.

  Returns:
    (o_BTHV in v's dtype, final state_BHKV in float32 or None).

  Raises:
    ValueError: shapes, dtypes, ranges or options that do not fit, or a backend that cannot run here.
  """
  plan, inputs = _canonical(q, k, v, g, beta, scale, initial_state, segment_ids, reverse, chunk, backend,
                            backward_backend, precision, save_states, num_heads, num_key_heads)
  if plan.forward == "reference":
    o, final = reference.run(plan, inputs)
  else:
    o, final = _recurrence(plan, inputs)
  if segment_ids is not None:
    o = jnp.where(segment_ids[:, :, None, None] >= 0, o, 0)
  if num_heads is not None:
    o = o.reshape(*o.shape[:2], -1)
  return o, final if return_final_state else None


def explain_backend(q, k, v, g=None, beta=None, *, initial_state=None, segment_ids=None, reverse=False,
                    chunk=None, backend="auto", precision="mixed", num_heads=None, num_key_heads=None,
                    platform=None) -> choice.Choice:
  """Says which backend `chunk_recurrence` would take for these arrays (or shapes), and why.

  Raises:
    ValueError: as `chunk_recurrence`.
  """
  q, k, v, g = check.split_heads(q, k, v, g, num_heads, num_key_heads)
  check.arguments(q, k, v, g, beta, initial_state, segment_ids, chunk, precision, "auto")
  platform = jax.default_backend() if platform is None else platform
  plan = _plan(q, v, g, beta, segment_ids, None, reverse, chunk, platform, precision, "auto")
  return backends.choose(backend, plan, platform)


def _canonical(q, k, v, g, beta, scale, initial_state, segment_ids, reverse, chunk, backend,
               backward_backend, precision, save_states, num_heads, num_key_heads):
  q, k, v, g = check.split_heads(q, k, v, g, num_heads, num_key_heads)
  check.arguments(q, k, v, g, beta, initial_state, segment_ids, chunk, precision, save_states)
  platform = jax.default_backend()
  plan = _plan(q, v, g, beta, segment_ids, scale, reverse, chunk, platform, precision, save_states)
  forward = backends.choose(backend, plan, platform).name
  backward = forward
  if backward_backend is not None:
    backward = backends.choose(backward_backend, plan, platform).name
  if "reference" in (forward, backward) and forward != backward:
    raise ValueError(f"backend={forward!r} with backward_backend={backward!r}: the reference is "
                     "differentiated as a whole; name it for both or for neither.")
  plan = dataclasses.replace(plan, forward=forward, backward=backward)

  wide = plan.state_dtype
  if g is not None:
    g = jnp.asarray(g, wide)
    if g.ndim == 1:
      g = jnp.broadcast_to(g[None, None, :], v.shape[:3])
  beta = None if beta is None else jnp.asarray(beta, wide)
  if initial_state is None:
    initial_state = jnp.zeros((plan.B, plan.H, plan.K, plan.V), wide)
  inputs = Inputs(*map(jnp.asarray, (q, k, v)), g, beta, jnp.asarray(initial_state, wide), None)
  if segment_ids is not None:
    inputs = _pack(inputs, jnp.asarray(segment_ids))
  return plan, compat.vary_alike(inputs)


def _plan(q, v, g, beta, segment_ids, scale, reverse, chunk, platform, precision, save_states):
  B, T, H, V = v.shape
  G, K = q.shape[2:]
  decay = "none" if g is None else "vector" if len(g.shape) == 4 else "scalar"
  delta = beta is not None
  dtype = jnp.dtype(v.dtype).name
  chunk = chunk or default_chunk(decay, delta, K, V, T, dtype, platform)
  return Plan(decay=decay, delta=delta, packed=segment_ids is not None, B=B, T=T, H=H, G=G, K=K, V=V,
              dtype=dtype, scale=K**-0.5 if scale is None else float(scale),
              chunk=chunk, reverse=bool(reverse), precision=precision,
              save_states="save" if save_states == "auto" else save_states, forward="", backward="",
              group=default_group(B * H, max(K, V), chunk, platform))


def _pack(inputs, segment_ids):
  """Numbers the runs of equal ids and silences the padding, so that backends know only equality."""
  token_BT = segment_ids >= 0
  index_BT = jnp.where(token_BT, jnp.arange(segment_ids.shape[1])[None, :], -1)
  latest_BT = jnp.maximum(jax.lax.cummax(index_BT, axis=1), 0)
  filled_BT = jnp.take_along_axis(segment_ids, latest_BT, axis=1)
  # Padding before the first token belongs to its segment: the initial state must pass through.
  first_B1 = jnp.argmax(token_BT, axis=1)[:, None]
  started_BT = jnp.cumsum(token_BT, axis=1) > 0
  filled_BT = jnp.where(started_BT, filled_BT, jnp.take_along_axis(segment_ids, first_B1, axis=1))
  change_BT = jnp.concatenate([jnp.zeros_like(token_BT[:, :1]), filled_BT[:, 1:] != filled_BT[:, :-1]], 1)
  silence = lambda x: None if x is None else jnp.where(
      jnp.expand_dims(token_BT, tuple(range(2, x.ndim))), x, 0)
  q, k, v, g, beta = map(silence, inputs[:5])
  return Inputs(q, k, v, g, beta, inputs.state, jnp.cumsum(change_BT, axis=1, dtype=jnp.int32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(plan, inputs):
  without_states = dataclasses.replace(plan, save_states="recompute")
  o, final, _ = backends.BACKENDS[plan.forward].forward(without_states, inputs)
  return o, final


def _recurrence_forward(plan, inputs):
  o, final, states = backends.BACKENDS[plan.forward].forward(plan, inputs)
  states = checkpoint_name(states, "chunk_states") if plan.save_states == "save" else None
  return (o, final), (inputs, states)


def _recurrence_backward(plan, residuals, cotangents):
  inputs, states = residuals
  return (backends.BACKENDS[plan.backward].backward(plan, inputs, states, *cotangents),)


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)
