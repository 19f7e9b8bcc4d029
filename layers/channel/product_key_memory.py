"""A memory of n^2 slots as a channel mixer, found by two searches among n half keys.

    q = W_q x + b, per head two halves (q1, q2)        s1 = K1 q1, s2 = K2 q2 in R^n
    score of slot i n + j is s1[i] + s2[j]; the k best slots of all n^2 are found exactly among
    the k^2 sums of the k best i and the k best j
    m = sum over heads and their k slots of softmax(scores) V[slot]

`ProductKeyMemory` returns m, through a map if the values are not as wide as x; `MemoryPlus` returns
W_out(m * silu(W_gate x)). Every layer has a table of its own. `used` is the share of slots that the
batch touched, `usage_kl` the divergence of their weights from even use, in nats.

Departure: the paper shares one table among its memory layers; layers of this stack share no parameters.

References: Lample et al., "Large Memory Layers with Product Keys", 2019; Berges et al., "Memory Layers
at Scale", 2024, sections 2.1 and 2.2.
"""

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from layers.dense import Dense

# Dims: B batch, T tokens, N = B T, D model width, H heads, K width of half a key, I half keys, R slots per head,
# V value width, M slots.

TINY = dict(heads=2, half_keys=3, top_k=3, key_dim=4, value_dim=0)


def best_slots(q_NHK, keys_HIK, other_NHK, others_HIK, top_k: int):
  """Returns (scores_NHR, slots_NHR) of the top_k best sums of two half scores, best first.

  Whichever pair is among the best has both halves among the best of their own, so nothing is missed.

  Args:
    q_NHK, other_NHK: the two halves of the queries.
    keys_HIK, others_HIK: the two tables of half keys.
    top_k: R.
  """
  score = lambda q, keys: jnp.einsum("nhk,hik->nhi", q, keys, precision=jax.lax.Precision.HIGHEST)
  first_NHR, row_NHR = jax.lax.top_k(score(q_NHK, keys_HIK), top_k)
  second_NHR, column_NHR = jax.lax.top_k(score(other_NHK, others_HIK), top_k)
  pairs = lambda a, b: (a[..., :, None] + b[..., None, :]).reshape(*a.shape[:-1], -1)
  scores_NHR, pair_NHR = jax.lax.top_k(pairs(first_NHR, second_NHR), top_k)
  slots_NHP = pairs(row_NHR * keys_HIK.shape[1], column_NHR)
  return scores_NHR, jnp.take_along_axis(slots_NHP, pair_NHR, axis=-1)


def read(values_MV, weights_NR, slots_NR):
  """Returns [N, V], the weighted sum of the slots; only these rows of the table get a gradient."""
  return jnp.einsum("nr,nrv->nv", weights_NR.astype(values_MV.dtype), values_MV[slots_NR])


def usage(weights_NR, slots_NR, slots: int):
  """Returns (share of slots with any weight, KL of their total weight from even use, in nats)."""
  total_M = jnp.zeros(slots).at[slots_NR].add(weights_NR)
  p_M = total_M / jnp.maximum(jnp.sum(total_M), 1e-30)
  return jnp.mean(total_M > 0, dtype=jnp.float32), jnp.log(slots) - jnp.sum(jax.scipy.special.entr(p_M))


class _Memory(nn.Module):
  """Looks up; returns m_NV.

  Attributes: as in ProductKeyMemory.
  """

  heads: int
  half_keys: int
  top_k: int
  key_dim: int
  value_dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_ND):
    H, I, K = self.heads, self.half_keys, self.key_dim
    if not 1 <= self.top_k <= I:
      raise ValueError(f"top_k={self.top_k} must be from 1 to half_keys={I}; take fewer slots, or add half keys.")
    if min(H, K) < 1:
      raise ValueError(f"heads={H} and key_dim={K} must be at least 1.")
    query = Dense((H, 2 * K), kernel_init=nn.initializers.xavier_uniform(), name="query")
    q_NHK, other_NHK = jnp.split(query(x_ND.astype(jnp.float32)), 2, axis=-1)
    bound = K**-0.5
    uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    keys_HIK, others_HIK = (self.param(name, uniform, (H, I, K)) for name in ("row_keys", "column_keys"))
    normal = nn.initializers.normal(self.value_dim**-0.5)
    values_MV = self.param("values", normal, (I * I, self.value_dim)).astype(self.dtype)
    scores_NHR, slots_NHR = best_slots(q_NHK, keys_HIK, other_NHK, others_HIK, self.top_k)
    flat = lambda a: rearrange(a, "n h r -> n (h r)")
    weights_NR, slots_NR = flat(jax.nn.softmax(scores_NHR)), flat(slots_NHR)
    if not self.is_initializing():
      used, kl = usage(jax.lax.stop_gradient(weights_NR), slots_NR, I * I)
      self.sow("metrics", "used", used)
      self.sow("metrics", "usage_kl", kl)
    return read(values_MV, weights_NR, slots_NR)


def _look_up(layer, x_BTD, width: int):
  """Returns what the memory of a layer in its compact call holds for every token, [B,T,width]."""
  memory = _Memory(layer.heads, layer.half_keys, layer.top_k, layer.key_dim, width, layer.dtype, name="memory")
  return memory(rearrange(x_BTD, "b t d -> (b t) d")).reshape(*x_BTD.shape[:2], width)


class ProductKeyMemory(nn.Module):
  """The memory by itself.

  Attributes:
    heads: H, searches per token.
    half_keys: n; the memory has n^2 slots.
    top_k: slots that each head reads.
    key_dim: width of half a key.
    value_dim: V; 0 means the width of x, and no map after the memory.
    dtype: dtype of the values and maps; the search is float32.
  """

  heads: int = 4
  half_keys: int = 64
  top_k: int = 32
  key_dim: int = 32
  value_dim: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    D, V = x_BTD.shape[-1], self.value_dim or x_BTD.shape[-1]
    m_BTV = _look_up(self, x_BTD, V)
    return m_BTV if V == D else Dense(D, dtype=self.dtype, name="down")(m_BTV)


class MemoryPlus(nn.Module):
  """The memory with a gate from the token and a map after it; attributes as in ProductKeyMemory."""

  heads: int = 4
  half_keys: int = 64
  top_k: int = 32
  key_dim: int = 32
  value_dim: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    D, V = x_BTD.shape[-1], self.value_dim or x_BTD.shape[-1]
    m_BTV = _look_up(self, x_BTD, V)
    normal = nn.initializers.normal(D**-0.5)
    dense = lambda width, name: Dense(width, kernel_init=normal, dtype=self.dtype, name=name)
    return dense(D, "down")(m_BTV * nn.silu(dense(V, "gate")(x_BTD)))
