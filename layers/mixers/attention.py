"""Softmax attention: every token reads the tokens that it may see.

    y_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s        s <= t, within the window

G groups of heads share keys and values. Its state is a cache of the last
`max_tokens` keys and values, so decoding reads back that far and no further;
everything else about it is exact.

References: Vaswani et al., "Attention Is All You Need", 2017; Ainslie et al.,
"GQA", 2023; Beltagy et al., "Longformer", 2020 (window); Henry et al.,
"Query-Key Normalization for Transformers", 2020, with RMSNorm and gain 1.
"""

import functools

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import probe, rope, segments
from layers.dense import Dense
from layers.norms.rms_norm import rms_norm

# Dims: B batch, T new tokens, M cached tokens, S = M + T, H heads, G groups, R heads per group, K head width.


def visible(position_BT, position_BS, *, causal=True, window=0, ids_BT=None, ids_BS=None):
  """Returns the mask [B, 1, T, S]: True where token t may read token s.

  Args:
    position_BT, position_BS: place of each reader and each source in its row.
    causal: a source later than its reader is hidden.
    window: sources `window` or more tokens back are hidden; 0 hides none.
    ids_BT, ids_BS: only equal, non-negative segment ids see each other.
  """
  back_BTS = position_BT[:, :, None] - position_BS[:, None, :]
  mask_BTS = (back_BTS >= 0) if causal else jnp.ones_like(back_BTS, bool)
  if window:
    mask_BTS &= jnp.abs(back_BTS) < window
  if ids_BT is not None:
    mask_BTS &= (ids_BT[:, :, None] == ids_BS[:, None, :]) & (ids_BS[:, None, :] >= 0)
  return mask_BTS[:, None]


def extend_cache(cache, k_BTGK, v_BTGK, ids_BT):
  """Appends new keys and values; returns (line of M + T tokens, cache of the last M real ones).

  A cache holds k_BMGK, v_BMGK and live_BM: which slots hold a token of the running segment.
  """
  M = cache["live_BM"].shape[1]
  old_BM = jnp.where(cache["live_BM"], segments.first_segment(ids_BT)[:, None], -1)
  line = dict(k_BSGK=jnp.concatenate([cache["k_BMGK"], k_BTGK], axis=1),
              v_BSGK=jnp.concatenate([cache["v_BMGK"], v_BTGK], axis=1),
              ids_BS=jnp.concatenate([old_BM, ids_BT], axis=1))
  count_B = segments.tokens_to_last(ids_BT)
  last_B1 = jnp.take_along_axis(line["ids_BS"], M - 1 + count_B[:, None], axis=1)
  kept_BM = segments.window(line["ids_BS"], count_B, M)
  live_BM = (kept_BM == last_B1) & (kept_BM >= 0)
  # Dead slots are zero, so that equal histories leave equal states.
  keep = lambda line_BSGK: jnp.where(
      live_BM[..., None, None], segments.window(line_BSGK, count_B, M), 0)
  return line, dict(k_BMGK=keep(line["k_BSGK"]), v_BMGK=keep(line["v_BSGK"]),
                    live_BM=live_BM)


def entropy(q_BTHK, k_BSGK, mask_B1TS):
  """Returns the entropy [B, T] in nats of what each token reads, mean over heads.

  A token that may see nothing has no meaningful one, but a finite one.
  """
  q_BTGRK = rearrange(q_BTHK, "b t (g r) k -> b t g r k", g=k_BSGK.shape[2])
  scores_BGRTS = jnp.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32)
  scores_BGRTS = jnp.where(mask_B1TS[:, None], scores_BGRTS * q_BTHK.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
  p_BGRTS = jax.nn.softmax(scores_BGRTS, axis=-1)
  return jnp.mean(jnp.sum(jax.scipy.special.entr(p_BGRTS), axis=-1), axis=(1, 2))


class Attention(nn.Module):
  """The mixer: project, rotate, attend, project back.

  Attributes:
    heads: number of query heads H.
    head_dim: K, per head.
    groups: number of key and value heads G, a divisor of heads; 0 means heads.
    window: tokens that a token sees, itself included; 0 means all.
    max_tokens: M, how far back decoding can look; with a window, at least window - 1.
    rope_theta: base of the rotary wavelengths; 0 leaves positions out.
    qk_norm: whether queries and keys are normalised to unit mean square.
    direction: "causal" or "bidirectional".
    bias: whether the four projections have biases.
    kernel_transform: of the four projections, a name of layers/kernel_transforms.py; "" is none.
    dtype: dtype of the products; softmax is float32.
  """

  heads: int = 4
  head_dim: int = 32
  groups: int = 0
  window: int = 0
  max_tokens: int = 256
  rope_theta: float = 10_000.0
  qk_norm: bool = False
  direction: str = "causal"
  bias: bool = False
  kernel_transform: str = ""
  dtype: jnp.dtype = jnp.float32

  reads, writes = ("query", "key", "value"), ("out",)  # layers/stream_map.py

  def init_state(self, batch: int):
    """Returns an empty cache."""
    slots = (batch, self.max_tokens, self.groups or self.heads, self.head_dim)
    return dict(k_BMGK=jnp.zeros(slots, self.dtype), v_BMGK=jnp.zeros(slots, self.dtype),
                live_BM=jnp.zeros(slots[:2], bool), seen_B=jnp.zeros(batch, jnp.int32))

  def _check(self):
    if self.groups and self.heads % self.groups:
      raise ValueError(f"groups={self.groups} must divide heads={self.heads}.")
    if self.direction not in ("causal", "bidirectional"):
      raise ValueError(f"direction={self.direction!r} must be 'causal' or 'bidirectional'.")
    if 0 < self.max_tokens < self.window - 1:
      raise ValueError(f"max_tokens={self.max_tokens} must reach window - 1 = "
                       f"{self.window - 1} tokens back.")

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    self._check()
    B, T, D = x_BTD.shape
    G, causal = self.groups or self.heads, self.direction == "causal"
    if state is not None and not causal:
      raise ValueError("direction='bidirectional' reads the whole row; it takes no state.")
    dense = functools.partial(Dense, use_bias=self.bias, dtype=self.dtype, kernel_transform=self.kernel_transform)
    project = lambda heads, name: dense((heads, self.head_dim), name=name)(x_BTD)
    q_BTHK, k_BTGK, v_BTGK = project(self.heads, "query"), project(G, "key"), project(G, "value")
    if self.qk_norm:
      q_BTHK, k_BTGK = rms_norm(q_BTHK), rms_norm(k_BTGK)

    seen_B = jnp.zeros(B, jnp.int32) if state is None else state["seen_B"]
    ids_BT = jnp.zeros((B, T), jnp.int32) if segment_ids is None else segment_ids
    position_BT, now_B = segments.positions(ids_BT, seen_B)
    if self.rope_theta:
      q_BTHK = rope.rotate(q_BTHK, position_BT, self.rope_theta)
      k_BTGK = rope.rotate(k_BTGK, position_BT, self.rope_theta)

    cache = self.init_state(B) if state is None else state
    line, cache = extend_cache(cache, k_BTGK, v_BTGK, ids_BT)
    if state is None:  # nothing lies before the row: leave the empty slots out
      k_BSGK, v_BSGK, mask = k_BTGK, v_BTGK, None
      if segment_ids is not None or self.window:
        mask = visible(position_BT, position_BT, causal=causal, window=self.window,
                       ids_BT=segment_ids, ids_BS=segment_ids)
    else:
      k_BSGK, v_BSGK = line["k_BSGK"], line["v_BSGK"]
      cached_BM = seen_B[:, None] + jnp.arange(-self.max_tokens, 0)[None]
      position_BS = jnp.concatenate([cached_BM, position_BT], axis=1)
      mask = visible(position_BT, position_BS, window=self.window,
                     ids_BT=ids_BT, ids_BS=line["ids_BS"])
    probe.show(self, "attention_entropy_BT", lambda: entropy(
        q_BTHK, k_BSGK, visible(position_BT, position_BT, causal=causal) if mask is None else mask))
    y_BTHK = jax.nn.dot_product_attention(
        q_BTHK, k_BSGK, v_BSGK, mask=mask, is_causal=causal and mask is None)
    y_BTD = dense(D, inputs=2, name="out")(y_BTHK)
    return y_BTD, dict(cache, seen_B=now_B)
