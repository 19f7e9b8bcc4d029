"""Linear self-attention, the layer of which in-context learning is best understood.

Tokens e_j of width D are (x_j, y_j); the query is the last one, (x_q, 0). One step adds to every token

    four:  P W_V sum_i e_i (W_K e_i) . (W_Q e_j)            von Oswald et al.; M = W_K^T W_Q in Mahankali et al.
    two:   W_PV (1/n) sum_i e_i e_i^T W_KQ e_j               Zhang et al., n = tokens read but the query
    gd:    (0, -(eta/n) sum_i y_i x_i . x_j)                 two with scalars: one gradient step
    gd++:  gd, and x_j <- x_j - (gamma/n) sum_i x_i x_i . x_j

i runs over the n tokens before the query ("context"), over all ("all", Zhang et al.), or over those up to j
("causal"). No softmax, no 1/sqrt(D), no bias, no mask. A sign: the y-slot of a query after k steps of gd holds
-w_k . x_q, which the read-out of layers/regressor.py turns round.

References: von Oswald et al., "Transformers learn in-context by gradient descent", 2023; Mahankali, Hashimoto and
Ma, "One Step of Gradient Descent is Provably the Optimal In-Context Learner with One Layer of Linear
Self-Attention", 2024; Zhang, Frei and Bartlett, "Trained Transformers Learn Linear Models In-Context", 2024.
Departure: "causal", for decoders and for reading token by token, is in none of them.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers.dense import Dense
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, D width, K key width, V value width, S steps.

TINY = dict(keys="causal", steps=2, init_scale=0.1)
FORMS = ("four", "two", "gd", "gd++")
KEYS = ("context", "all", "causal")
_EXACT = jax.lax.Precision.HIGHEST


def read(q_BTK, k_BTK, v_BTV, keys: str):
  """Returns sum_i v_i (k_i . q_j) for every token j, in float32, over the tokens i that `keys` names."""
  if keys == "context":
    k_BTK, v_BTV = k_BTK[:, :-1], v_BTV[:, :-1]
  memory_BKV = jnp.einsum("btk,btv->bkv", k_BTK, v_BTV, precision=_EXACT, preferred_element_type=jnp.float32)
  return jnp.einsum("btk,bkv->btv", q_BTK.astype(jnp.float32), memory_BKV, precision=_EXACT)


def four_matrices(e_BTD, key_KD, query_KD, value_VD, out_DV, keys: str = "context"):
  """Returns what one step adds, of von Oswald's W_K, W_Q, W_V and P."""
  along = lambda matrix: jnp.einsum("btd,kd->btk", e_BTD, matrix, precision=_EXACT)
  y_BTV = read(along(query_KD), along(key_KD), along(value_VD), keys)
  return jnp.einsum("btv,dv->btd", y_BTV, out_DV, precision=_EXACT)


def two_matrices(e_BTD, pv_DD, kq_DD, keys: str = "all"):
  """Returns what one step adds, of Zhang's W_PV and W_KQ, with 1 / n for the T - 1 pairs of a prompt."""
  q_BTD = jnp.einsum("btd,kd->btk", e_BTD, kq_DD, precision=_EXACT)
  y_BTD = read(q_BTD, e_BTD, e_BTD, keys) / (e_BTD.shape[1] - 1)
  return jnp.einsum("btv,dv->btd", y_BTD, pv_DD, precision=_EXACT)


def one_output(e_BTD, head_D, mixed_DD):
  """Returns Mahankali's prediction h^T (sum_i e_i e_i^T) M e_q, of tokens whose last one is the query."""
  q_B1D = jnp.einsum("btd,kd->btk", e_BTD[:, -1:], mixed_DD, precision=_EXACT)
  memory_BDD = jnp.einsum("btk,btv->bkv", e_BTD[:, :-1], e_BTD[:, :-1], precision=_EXACT)
  return jnp.einsum("btk,bkv,v->b", q_B1D, memory_BDD, head_D, precision=_EXACT)


def products(params, form: str, D: int):
  """Returns (W_PV, W_KQ) of a layer's parameters, n W_PV for "four": what two layers have to share to be the same.

  Args:
    params: of LinearSelfAttention.
    form: its form.
    D: width of the tokens.
  """
  if form == "four":
    kernel = {name: params[name]["kernel"] for name in ("query", "key", "value", "out")}
    return (kernel["value"] @ kernel["out"]).T, kernel["key"] @ kernel["query"].T
  if form == "two":
    return params["pv"]["kernel"].T, params["kq"]["kernel"].T
  on_x_D = jnp.arange(D) < D - 1
  gamma = params["gamma"] if form == "gd++" else 0.0
  return jnp.diag(jnp.where(on_x_D, -gamma, -params["eta"])), jnp.diag(on_x_D.astype(jnp.float32))


def _flow_start(scale: float):
  """Returns initialisers (W_PV, W_KQ), as kernels, from which gradient flow provably converges."""
  def pv(key, shape, dtype):
    return jnp.zeros(shape, dtype).at[-1, -1].set(scale)
  def kq(key, shape, dtype):
    d = shape[0] - 1
    theta_dd = jax.random.normal(key, (d, d), dtype)
    square_dd = theta_dd @ theta_dd.T
    return jnp.zeros(shape, dtype).at[:-1, :-1].set(scale * square_dd / jnp.linalg.norm(square_dd))
  return pv, kq


class LinearSelfAttention(nn.Module):
  """The mixer; the residual connection is the stack's.

  Attributes:
    form: "four", "two", "gd" or "gd++", see the file's first lines; the last two have scalars to learn.
    keys: the tokens read, "context", "all" or "causal".
    steps: how often the layer is applied, each time to what it made of the tokens.
    key_dim: K of form "four"; 0 takes the width of the tokens, which a state ("causal") cannot know.
    value_dim: V of form "four", likewise.
    init_scale: of form "four" the variance of the maps times their inputs; of the others how large they start.
    dtype: dtype of the maps. What tokens read is summed in float32.
  """

  form: str = "four"
  keys: str = "context"
  steps: int = 1
  key_dim: int = 0
  value_dim: int = 0
  init_scale: float = 0.002
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memories S_BSKV of a causal layer; the others read prompts whole and have none."""
    if self.keys != "causal":
      return {}
    if self.form != "four" or not self.key_dim or not self.value_dim:
      raise ValueError(f"form={self.form!r} with key_dim={self.key_dim}, value_dim={self.value_dim}: a state needs "
                       "form='four' and both widths above 0.")
    return dict(S_BSKV=jnp.zeros((batch, self.steps, self.key_dim, self.value_dim), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    self._check(x_BTD, state, segment_ids)
    maps = self._maps(x_BTD.shape[-1])
    memory_BSKV, finals = (state or {}).get("S_BSKV"), []
    e_BTD = x_BTD
    for step in range(self.steps):
      q_BTK, k_BTK, v_BTV = (f(e_BTD) for f in maps[:3])
      if self.keys == "causal":
        one_head = [a[:, :, None] for a in (q_BTK, k_BTK, v_BTV)]
        y_BT1V, final = chunk_recurrence(
            *one_head, scale=1.0, segment_ids=segment_ids, return_final_state=True, precision="highest",
            initial_state=None if memory_BSKV is None else memory_BSKV[:, step, None])
        y_BTV, finals = y_BT1V[:, :, 0], finals + [final]
      else:
        y_BTV = read(q_BTK, k_BTK, v_BTV, self.keys)
        y_BTV = y_BTV if self.form == "four" else y_BTV / (x_BTD.shape[1] - 1)
      e_BTD = e_BTD + maps[3](y_BTV).astype(e_BTD.dtype)
    return e_BTD - x_BTD, dict(S_BSKV=jnp.concatenate(finals, 1)) if finals else state

  def _check(self, x_BTD, state, segment_ids):
    for field, known in (("form", FORMS), ("keys", KEYS)):
      if getattr(self, field) not in known:
        raise ValueError(f"{field}={getattr(self, field)!r} is unknown; choose from {', '.join(known)}.")
    if self.steps < 1 or not 0 < self.init_scale < math.inf:
      raise ValueError(f"steps={self.steps} must be at least 1 and init_scale={self.init_scale} above 0.")
    if self.keys == "causal" and self.form != "four":
      raise ValueError(f"form={self.form!r} divides by the pairs of a whole prompt; keys='causal' takes form='four'.")
    if self.keys != "causal" and (state or segment_ids is not None):
      raise ValueError(f"keys={self.keys!r} reads prompts whole; only keys='causal' takes a state or segment_ids.")
    if self.keys != "causal" and x_BTD.shape[1] < 2:
      raise ValueError(f"keys={self.keys!r} needs T={x_BTD.shape[1]} of at least 2 tokens, a pair and the query.")

  def _maps(self, D):
    """Returns the maps to queries, keys and values, and from what was read to the tokens."""
    same = lambda e: e.astype(self.dtype)
    if self.form == "four":
      start = nn.initializers.variance_scaling(self.init_scale, "fan_in", "truncated_normal")
      dense = lambda width, name: Dense(width, use_bias=False, dtype=self.dtype, kernel_init=start,
                                           precision=_EXACT, name=name)
      K, V = self.key_dim or D, self.value_dim or D
      return dense(K, "query"), dense(K, "key"), dense(V, "value"), dense(D, "out")
    if self.form == "two":
      pv, kq = _flow_start(self.init_scale)
      dense = lambda start, name: Dense(D, use_bias=False, dtype=self.dtype, kernel_init=start,
                                           precision=_EXACT, name=name)
      return dense(kq, "kq"), same, same, dense(pv, "pv")
    start = nn.initializers.constant(self.init_scale)
    eta = self.param("eta", start, ())
    gamma = self.param("gamma", start, ()) if self.form == "gd++" else jnp.zeros(())
    on_x_11D = (jnp.arange(D) < D - 1)[None, None]
    only_x = lambda e: jnp.where(on_x_11D, same(e), 0)
    return only_x, only_x, same, lambda y: -jnp.where(on_x_11D, gamma, eta) * y
