"""Multi-head latent attention: keys and values of all heads are maps of one narrow vector per token.

    q_t = W_qb rms(W_qa x_t), per head [q_nope | q_rope]        [c_t | r_t] = W_kva x_t
    [k_nope | v]_s = W_kvb rms(c_s), per head        k_rope_s = rot(r_s), one for all heads
    y_t = W_o [sum_{s <= t} softmax_s((q_nope . k_nope + rot(q_rope) . k_rope) / sqrt(C + R)) v_s]

Its state is a cache of rms(c) and rot(r) alone: L + R numbers per token in place of 2 H C. Decoding reads
them as they are (`absorbed`): the map of the keys moves to the query, that of the values to the output.
A whole row is computed with keys and values of full width (`expanded`), which costs less there.

Departure: rotary pairs are the halves of R, not neighbours; this permutes columns of W_qb and W_kva.

References: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1 and appendix C; Zhao et al., "Insights into DeepSeek-V3:
Scaling Challenges and Reflections on Hardware for AI Architectures", 2025, section 2.1.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import rope, segments, token_cache
from layers.dense import Dense
from layers.norms.rms_norm import RMSNorm

# Dims: B batch, T tokens, S sources, D model width, H heads, C width of a head without position, R with it,
# V value width, L latent width.

TINY = dict(heads=2, head_dim=4, rope_dim=2, value_dim=4, query_rank=5, latent=3)


def _weights(nope_BHTS, q_BTHR, r_BSR, mask_BTS, width):
  """Returns softmax weights [B, H, T, S] in float32 of a score without position plus a rotary one."""
  scores_BHTS = nope_BHTS + jnp.einsum("bthr,bsr->bhts", q_BTHR, r_BSR, preferred_element_type=jnp.float32)
  scores_BHTS = jnp.where(mask_BTS[:, None], scores_BHTS * width**-0.5, jnp.finfo(jnp.float32).min)
  return jax.nn.softmax(scores_BHTS, axis=-1)


def expanded(q_BTHC, q_BTHR, c_BSL, r_BSR, keys_LHC, values_LHV, mask_BTS):
  """Makes keys and values of every source, then attends; returns [B, T, H, V]."""
  k_BSHC = jnp.einsum("bsl,lhc->bshc", c_BSL, keys_LHC)
  v_BSHV = jnp.einsum("bsl,lhv->bshv", c_BSL, values_LHV)
  nope_BHTS = jnp.einsum("bthc,bshc->bhts", q_BTHC, k_BSHC, preferred_element_type=jnp.float32)
  p_BHTS = _weights(nope_BHTS, q_BTHR, r_BSR, mask_BTS, q_BTHC.shape[-1] + q_BTHR.shape[-1])
  return jnp.einsum("bhts,bshv->bthv", p_BHTS.astype(v_BSHV.dtype), v_BSHV)


def absorbed(q_BTHC, q_BTHR, c_BSL, r_BSR, keys_LHC, values_LHV, mask_BTS):
  """`expanded` without keys or values of any source: attends to the latent vectors themselves."""
  q_BTHL = jnp.einsum("bthc,lhc->bthl", q_BTHC, keys_LHC)
  nope_BHTS = jnp.einsum("bthl,bsl->bhts", q_BTHL, c_BSL, preferred_element_type=jnp.float32)
  p_BHTS = _weights(nope_BHTS, q_BTHR, r_BSR, mask_BTS, q_BTHC.shape[-1] + q_BTHR.shape[-1])
  read_BTHL = jnp.einsum("bhts,bsl->bthl", p_BHTS.astype(c_BSL.dtype), c_BSL)
  return jnp.einsum("bthl,lhv->bthv", read_BTHL, values_LHV)


class _HeadKernel(nn.Module):
  """The kernel [L, H, width] of a map to heads, for use inside an einsum."""

  shape: tuple[int, int, int]

  @nn.compact
  def __call__(self):
    return self.param("kernel", nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2)), self.shape)


class LatentAttention(nn.Module):
  """The mixer.

  Attributes:
    heads: H.
    head_dim: C, per head, without position.
    rope_dim: R, even; per head for queries, shared by all heads for keys.
    value_dim: V, per head.
    query_rank: width of the queries' bottleneck; 0 leaves it out.
    latent: L, what is cached for keys and values.
    max_tokens: how far back decoding can look.
    rope_theta: base of the rotary wavelengths.
    dtype: dtype of the products; softmax is float32.
  """

  heads: int = 4
  head_dim: int = 32
  rope_dim: int = 16
  value_dim: int = 32
  query_rank: int = 96
  latent: int = 64
  max_tokens: int = 256
  rope_theta: float = 10_000.0
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns an empty cache of latent vectors."""
    shapes = dict(c_BML=(self.latent,), r_BMR=(self.rope_dim,))
    return token_cache.empty(batch, self.max_tokens, shapes, self.dtype)

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    B, T, D = x_BTD.shape
    H, C, R = self.heads, self.head_dim, self.rope_dim
    if R < 2 or R % 2:
      raise ValueError(f"rope_dim={R} must be even and at least 2.")
    dense = lambda width, name: Dense(width, use_bias=False, dtype=self.dtype, name=name)
    narrow = x_BTD
    if self.query_rank:
      narrow = RMSNorm(name="query_norm")(dense(self.query_rank, "query_down")(x_BTD))
    q_BTHW = dense((H, C + R), "query")(narrow)
    c_BTL, r_BTR = jnp.split(dense(self.latent + R, "latent")(x_BTD), [self.latent], axis=-1)
    c_BTL = RMSNorm(name="latent_norm")(c_BTL)
    keys_LHC = _HeadKernel((self.latent, H, C), name="key")().astype(self.dtype)
    values_LHV = _HeadKernel((self.latent, H, self.value_dim), name="value")().astype(self.dtype)

    cache = self.init_state(B) if state is None else state
    ids_BT = jnp.zeros((B, T), jnp.int32) if segment_ids is None else segment_ids
    position_BT, now_B = segments.positions(ids_BT, cache["seen_B"])
    turn = lambda a_BTHR: rope.rotate(a_BTHR, position_BT, self.rope_theta)
    q_BTHR, r_BTR = turn(q_BTHW[..., C:]), turn(r_BTR[:, :, None])[:, :, 0]
    sources = token_cache.extend(cache, dict(c_BML=c_BTL, r_BMR=r_BTR), ids_BT, position_BT, now_B, first=state is None)
    attend = expanded if state is None else absorbed
    y_BTHV = attend(q_BTHW[..., :C], q_BTHR, sources.arrays["c_BML"], sources.arrays["r_BMR"], keys_LHC, values_LHV,
                    sources.mask_BTS)
    y_BTD = Dense(D, inputs=2, use_bias=False, dtype=self.dtype, name="out")(y_BTHV)
    return y_BTD, sources.cache
