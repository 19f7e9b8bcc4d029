"""Softmax attention: every token reads the tokens that it may see.

    y_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s        s <= t, within the window

G groups of heads share keys and values. Its state is a cache of the last
`max_tokens` keys and values, so decoding reads back that far and no further;
everything else about it is exact. Who runs the layer several times may let the
later runs read the sources of the first: layers/token_cache.py.

References: Vaswani et al., "Attention Is All You Need", 2017; Ainslie et al.,
"GQA", 2023; Beltagy et al., "Longformer", 2020 (window); Henry et al.,
"Query-Key Normalization for Transformers", 2020, with RMSNorm and gain 1.
"""

import functools

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import probe, rope, segments, token_cache
from layers.dense import Dense
from layers.norms.rms_norm import rms_norm

# Dims: B batch, T new tokens, M cached tokens, S = M + T, H heads, G groups, R heads per group, K head width.


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
  shares_sources = True

  def init_state(self, batch: int):
    """Returns an empty cache."""
    head = (self.groups or self.heads, self.head_dim)
    return token_cache.empty(batch, self.max_tokens, dict(k_BMGK=head, v_BMGK=head), self.dtype)

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
    D, G, causal = x_BTD.shape[-1], self.groups or self.heads, self.direction == "causal"
    opened, given = isinstance(state, token_cache.Open), isinstance(state, token_cache.Sources)
    cache = None if given else state.cache if opened else state
    if cache is not None and not causal:
      raise ValueError("direction='bidirectional' reads the whole row; it takes no state.")
    dense = functools.partial(Dense, use_bias=self.bias, dtype=self.dtype, kernel_transform=self.kernel_transform)
    project = lambda heads, name: dense((heads, self.head_dim), name=name)(x_BTD)
    normed = rms_norm if self.qk_norm else lambda a_BTHK: a_BTHK
    q_BTHK = normed(project(self.heads, "query"))
    if given:
      sources = state
    else:
      sources = self._sources(normed(project(G, "key")), project(G, "value"), cache, segment_ids)
    if self.rope_theta:
      q_BTHK = rope.rotate(q_BTHK, sources.position_BT, self.rope_theta)
    k_BSGK, v_BSGK, mask_B1TS = sources.arrays["k_BMGK"], sources.arrays["v_BMGK"], sources.mask_BTS[:, None]
    probe.show(self, "attention_entropy_BT", lambda: entropy(q_BTHK, k_BSGK, mask_B1TS))
    # A plain row needs no mask but the causal one, which attention kernels have built in.
    plain = cache is None and not given and segment_ids is None and not self.window
    y_BTHK = jax.nn.dot_product_attention(
        q_BTHK, k_BSGK, v_BSGK, mask=None if plain else mask_B1TS, is_causal=causal and plain)
    y_BTD = dense(D, inputs=2, name="out")(y_BTHK)
    return y_BTD, sources if opened or given else sources.cache

  def _sources(self, k_BTGK, v_BTGK, cache, segment_ids):
    """Returns what a row reads: its own keys and values after those of the cache, which may be None."""
    B, T = k_BTGK.shape[:2]
    ids_BT = jnp.zeros((B, T), jnp.int32) if segment_ids is None else segment_ids
    first, cache = cache is None, self.init_state(B) if cache is None else cache
    position_BT, now_B = segments.positions(ids_BT, cache["seen_B"])
    if self.rope_theta:
      k_BTGK = rope.rotate(k_BTGK, position_BT, self.rope_theta)
    return token_cache.extend(cache, dict(k_BMGK=k_BTGK, v_BMGK=v_BTGK), ids_BT, position_BT, now_B,
                              first=first, causal=self.direction == "causal", window=self.window)
