"""The chunked form in plain jnp: runs on every device, and is what CPUs train on.

The chunks of a group are weighed at once (batched matmuls over n x B x H blocks of C rows); the recurrence
of the states is sequential, a scan over n chunks that costs one multiply-add per state without the delta
rule and two K x V x C matmuls with it. A group is all chunks, on CPUs as many as caches hold. The backward recomputes what is inside a chunk and reads one
saved state per chunk, 2 K V / C numbers per token and head instead of the 3 C of the score matrices.

Everything is laid out [N, B*H, C, D] once on entry, so that the scan slices its leading axis and every
matmul is a contiguous batch; XLA's CPU backend turns any other order into copies around each product.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence import chunk as chunk_lib
from pallas_kernels.chunk_recurrence.matrix import dot, solve, transpose
from pallas_kernels.chunk_recurrence.plan import Inputs, Plan

# Dims: N chunks, M = B*H independent rows, C chunk, K key width, V value width, W = 1 or K.


class Blocks(NamedTuple):
  """`Inputs` cut into chunks; gates and ids are columns."""

  q_NMCK: jax.Array
  k_NMCK: jax.Array
  v_NMCV: jax.Array
  g_NMCW: jax.Array | None
  beta_NMC1: jax.Array | None
  segment_NMC1: jax.Array | None
  carried_NM11: jax.Array | None


def why_not(plan: Plan, platform: str) -> str | None:
  """Reason why this backend cannot run `plan` on `platform`, or None."""
  del plan, platform
  return None


def forward(plan: Plan, inputs: Inputs, walk=None):
  """Runs the recurrence.

  Args:
    plan: the static half of the call.
    inputs: canonical arrays.
    walk: what takes the states over the chunks, None for a scan; see `_walk`.

  Returns:
    (o_BTHV in v's dtype, final state_BHKV, entry states of the chunks [N,B,H,K,V] in v's dtype).
  """
  def of_group(S_MKV, blocks):
    chunk, u, w = _prepare(plan, blocks)
    o_NMCV, S_NMKV, S_MKV = (walk or _walk)(chunk, u, w, S_MKV)
    return S_MKV, (o_NMCV.astype(inputs.v.dtype), S_NMKV.astype(inputs.v.dtype))

  S_MKV, (o_NMCV, states) = _by_group(plan, of_group, _merge_heads(inputs.state), _cut_inputs(plan, inputs))
  shape = inputs.state.shape
  return _join(plan, o_NMCV), S_MKV.reshape(shape), states.reshape(plan.chunks, *shape)


def backward(plan: Plan, inputs: Inputs, states, do_BTHV, dstate_BHKV, walk_back=None) -> Inputs:
  """Gradients of every array of `inputs`.

  Args:
    plan, inputs: as in `forward`.
    states: what `forward` returned, or None to run the states again.
    do_BTHV, dstate_BHKV: cotangents of the output and of the final state.
    walk_back: what takes the gradients of the states back over the chunks, None for a scan; see `_walk_back`.

  Returns:
    Cotangents in the shape of `inputs`, None for the segment ids.
  """
  blocks = _cut_inputs(plan, inputs)
  if states is None:
    states = forward(plan, inputs)[2]
  states = states.reshape(plan.chunks, -1, plan.K, plan.V)
  do_NMCV = _cut(plan, do_BTHV.astype(blocks.v_NMCV.dtype), plan.H)
  pull = functools.partial(_pull, plan, walk_back or _walk_back)
  dS_MKV, grads = _by_group(plan, pull, _merge_heads(dstate_BHKV), (blocks, states, do_NMCV), reverse=True)
  dq, dk, dv, dg, dbeta = grads
  like = lambda d, x: None if x is None else _join(plan, d).reshape(x.shape).astype(x.dtype)
  return Inputs(_join_keys(plan, dq).astype(inputs.q.dtype), _join_keys(plan, dk).astype(inputs.k.dtype),
                like(dv, inputs.v), like(dg, inputs.g), like(dbeta, inputs.beta),
                dS_MKV.reshape(inputs.state.shape), None)


def _by_group(plan, of_group, carry, blocks, reverse=False):
  """Scans `of_group` over groups of `plan.group` chunks: (carry, what it made of all chunks).

  What does not fill a group is a shorter one at the end.
  """
  N, size = plan.chunks, plan.group or plan.chunks
  if N <= size:
    return of_group(carry, blocks)
  whole = N - N % size
  cut = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), blocks)
  rest = jax.tree.map(lambda x: x[whole:], blocks)
  if reverse and N > whole:
    carry, last = of_group(carry, rest)
  carry, made = jax.lax.scan(of_group, carry, cut, reverse=reverse)
  made = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), made)
  if N == whole:
    return carry, made
  if not reverse:
    carry, last = of_group(carry, rest)
  return carry, jax.tree.map(lambda *x: jnp.concatenate(x), made, last)


def _pull(plan, walk_back, dS_MKV, group):
  """Takes the gradient of a group's exit state to (that of its entry state, those of q, k, v, g, beta)."""
  blocks, states, do_NMCV = group
  weighed = lambda q, k, v, g, beta: _prepare(plan, blocks._replace(
      q_NMCK=q, k_NMCK=k, v_NMCV=v, g_NMCW=g, beta_NMC1=beta))
  (chunk, u, w), pull = jax.vjp(weighed, *blocks[:5])
  fed = u.dtype
  S_NMKV = states.astype(plan.state_dtype)
  if w is not None:
    u = (u - dot(w, S_NMKV.astype(fed))).astype(fed)
  du, dS_exit, dS_MKV = walk_back(chunk, w, do_NMCV, dS_MKV)
  S_fed, dS_fed, u_fed = S_NMKV.astype(fed), dS_exit.astype(fed), u.astype(fed)
  dkeep = jnp.sum(dS_exit * S_NMKV, axis=-1, keepdims=True)
  if chunk.keep_W1.shape[-2] == 1:
    dkeep = jnp.sum(dkeep, axis=-2, keepdims=True)
  dchunk = chunk_lib.Chunk(
      q_in_CK=dot(do_NMCV, transpose(S_fed)).astype(fed),
      k_in_CK=None if w is None else jnp.zeros_like(chunk.k_in_CK),
      k_out_CK=dot(u_fed, transpose(dS_fed)).astype(fed),
      keep_W1=dkeep,
      mix_CC=dot(do_NMCV, transpose(u_fed)),
      erase_CC=None if w is None else jnp.zeros_like(chunk.erase_CC))
  dw = None if w is None else -dot(du.astype(fed), transpose(S_fed)).astype(w.dtype)
  return dS_MKV, pull((dchunk, du.astype(fed), dw))


def _prepare(plan, blocks):
  """(chunk, u, w): what a chunk writes is u - w S, with u = v and w None without the delta rule."""
  q, k, v, g, beta, segment, carried = blocks
  chunk = chunk_lib.weigh(q, k, g, beta, segment, carried, scale=plan.scale)
  if beta is None:
    return chunk, v, None
  right = beta * jnp.concatenate([v.astype(beta.dtype), chunk.k_in_CK.astype(beta.dtype)], axis=-1)
  solved = solve(chunk.erase_CC, right)
  return chunk, solved[..., :plan.V].astype(v.dtype), solved[..., plan.V:].astype(v.dtype)


def _walk(chunk, u, w, S_MKV):
  """(o_NMCV, entry states S_NMKV, final S_MKV)."""
  u, S_NMKV, S_MKV = _states(chunk, u, w, S_MKV)
  return dot(chunk.mix_CC.astype(u.dtype), u) + dot(chunk.q_in_CK, S_NMKV.astype(u.dtype)), S_NMKV, S_MKV


def _states(chunk, u, w, S_MKV):
  """Runs the states over the chunks: (writes u_NMCV, entry states S_NMKV, final S_MKV)."""
  if w is None:
    def add(S, block):
      keep, write = block
      return keep * S + write, S

    writes_NMKV = dot(transpose(chunk.k_out_CK), u)
    S_MKV, S_NMKV = jax.lax.scan(add, S_MKV, (chunk.keep_W1, writes_NMKV))
    return u, S_NMKV, S_MKV

  def overwrite(S, block):
    keep, k_out, u, w = block
    u = (u - dot(w, S.astype(w.dtype))).astype(w.dtype)
    return keep * S + dot(transpose(k_out), u), (u, S)

  S_MKV, (u, S_NMKV) = jax.lax.scan(overwrite, S_MKV, (chunk.keep_W1, chunk.k_out_CK, u, w))
  return u, S_NMKV, S_MKV


def _walk_back(chunk, w, do_NMCV, dS_MKV):
  """The same scan backwards: (du_NMCV, gradients of the exit states, gradient of the first state)."""
  du_NMCV = dot(transpose(chunk.mix_CC.astype(do_NMCV.dtype)), do_NMCV)
  dread_NMKV = dot(transpose(chunk.q_in_CK), do_NMCV)
  if w is None:
    def add(dS, block):
      keep, dread = block
      return keep * dS + dread, dS

    dS_MKV, dS_exit = jax.lax.scan(add, dS_MKV, (chunk.keep_W1, dread_NMKV), reverse=True)
    return du_NMCV + dot(chunk.k_out_CK, dS_exit.astype(chunk.k_out_CK.dtype)), dS_exit, dS_MKV

  def overwrite(dS, block):
    keep, k_out, w, du, dread = block
    du += dot(k_out, dS.astype(k_out.dtype))
    return keep * dS + dread - dot(transpose(w), du.astype(w.dtype)), (du, dS)

  dS_MKV, (du_NMCV, dS_exit) = jax.lax.scan(
      overwrite, dS_MKV, (chunk.keep_W1, chunk.k_out_CK, w, du_NMCV, dread_NMKV), reverse=True)
  return du_NMCV, dS_exit, dS_MKV


def _cut_inputs(plan, inputs):
  fed = jnp.dtype(plan.dtype)
  if plan.precision == "highest":
    fed = plan.state_dtype
  cut = lambda x, heads: None if x is None else _cut(plan, x, heads)
  column = lambda x: None if x is None else x.reshape(*x.shape[:3], -1)
  q, k, v, g, beta, _, segments = inputs
  segment = carried = None
  if segments is not None:
    heads = jnp.broadcast_to(segments[:, :, None, None], (*segments.shape, plan.H, 1))
    segment = _cut(plan, heads, plan.H, mode="edge")
    last = segment[:, :, -1:, :]
    carried = jnp.concatenate([segment[:1, :, :1, :], last[:-1]])
  return Blocks(cut(q.astype(fed), plan.H), cut(k.astype(fed), plan.H), cut(v.astype(fed), plan.H),
                cut(column(g), plan.H), cut(column(beta), plan.H), segment, carried)


def _cut(plan, x_BTGD, heads, mode="constant"):
  """[B,T,G,D] to [N, B*heads, C, D]: padded to whole chunks, flipped if reversed, heads repeated."""
  B, T, G, D = x_BTGD.shape
  N, C = plan.chunks, plan.chunk
  if plan.reverse:
    x_BTGD = jnp.flip(x_BTGD, axis=1)
  if N * C > T:
    x_BTGD = jnp.pad(x_BTGD, ((0, 0), (0, N * C - T), (0, 0), (0, 0)), mode=mode)
  x_NBGCD = x_BTGD.reshape(B, N, C, G, D).transpose(1, 0, 3, 2, 4)
  if heads > G:
    x_NBGCD = jnp.repeat(x_NBGCD, heads // G, axis=2)
  return x_NBGCD.reshape(N, B * heads, C, D)


def _join(plan, x_NMCD):
  """The inverse of `_cut` for one entry per value head."""
  N, _, C, D = x_NMCD.shape
  x = x_NMCD.reshape(N, plan.B, plan.H, C, D).transpose(1, 0, 3, 2, 4)
  x_BTHD = x.reshape(plan.B, N * C, plan.H, D)[:, :plan.T]
  return jnp.flip(x_BTHD, axis=1) if plan.reverse else x_BTHD


def _join_keys(plan, x_NMCK):
  """The transpose of `_cut` for key heads: the value heads of a group add up."""
  N, _, C, K = x_NMCK.shape
  x = x_NMCK.reshape(N, plan.B, plan.G, plan.H // plan.G, C, K)
  x = jnp.sum(x, axis=3).transpose(1, 0, 3, 2, 4).reshape(plan.B, N * C, plan.G, K)[:, :plan.T]
  return jnp.flip(x, axis=1) if plan.reverse else x


def _merge_heads(S_BHKV):
  return S_BHKV.reshape(-1, *S_BHKV.shape[2:])
