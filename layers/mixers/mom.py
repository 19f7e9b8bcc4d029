"""MoM, a mixture of memories: a router sends each token to a few of M memories, the others rest.

Per head, with W_m of the chosen memories summing to one, and a memory 0 that takes every token:

    S^m_t = A^m_t S^m_{t-1} + write(k^m_t, v^m_t)  if m is among the `top_k` of softmax(R x_t)
    S^m_t = S^m_{t-1}                              else
    y_t = RMSNorm([S^0_t + sum_m W_m S^m_t]^T q_t / sqrt(K)) * silu(W_gate x_t)

    rule "simple_gla"    A = exp(-a softplus(u . x + b))                     write = k v^T
    rule "gla"           A = Diag(sigmoid(W_2 W_1 x + b)^(1/16))             write = k v^T
    rule "gated_delta"   A = exp(-a softplus(u . x + b)) (I - beta k k^T)    write = beta k v^T

Every memory has keys, values and gates of its own; queries are shared. Memories are heads of one
kernel call in which a token that goes elsewhere writes nothing and forgets nothing, so no token is
ever dropped, at M times the cost of one memory. Into "losses" goes load_balance times the
Switch loss M sum_m (share of choices)_m (mean probability)_m, which is 1 where all are alike.

References: Du et al., "MoM: Linear Sequence Modeling with Mixture-of-Memories", 2025; Fedus et
al., "Switch Transformers", 2021 (balance). Departures: the paper's code drops the oldest tokens of
a full memory, which later tokens decide; here convolutions run over the row before it is routed.
"""

from einops import rearrange, repeat
import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import conv_heads, step_decay
from layers.dense import Dense
from layers.l2_norm import l2_norm
from layers.norms.rms_norm import RMSNorm
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, M routed memories, N all memories, H heads of one memory, P = N H,
# K key width, V value width, D model, R rank of the gate.

RULES = ("simple_gla", "gla", "gated_delta")
TINY = dict(memories=3, conv=3, gate_rank=3)


def route(logits_BTM, top_k: int):
  """Returns (weights_BTM, zero for memories not chosen and summing to one, softmax p_BTM)."""
  p_BTM = jax.nn.softmax(logits_BTM.astype(jnp.float32), axis=-1)
  _, chosen_BTC = jax.lax.top_k(p_BTM, top_k)
  mask_BTM = jnp.sum(jax.nn.one_hot(chosen_BTC, p_BTM.shape[-1], dtype=jnp.float32), axis=2)
  weights_BTM = p_BTM * mask_BTM
  return weights_BTM / jnp.sum(weights_BTM, axis=-1, keepdims=True), p_BTM


def balance(weights_BTM, p_BTM, real_BT):
  """Returns the Switch loss over the tokens that are real, 1 where choices and probabilities are alike."""
  mean = lambda x_BTM: jnp.sum(x_BTM * real_BT[..., None], axis=(0, 1)) / jnp.maximum(jnp.sum(real_BT), 1)
  chosen_M = mean((weights_BTM > 0).astype(jnp.float32))
  return p_BTM.shape[-1] * jnp.sum(chosen_M / jnp.sum(chosen_M).clip(1e-6) * mean(p_BTM))


class MoM(nn.Module):
  """The mixer: project, route, update the chosen memories, mix what they say, gate, project back.

  Attributes:
    heads: number of heads H of each memory.
    key_dim: K, per head.
    value_dim: V, per head.
    rule: one of RULES.
    memories: M.
    top_k: memories that a token is sent to.
    shared: whether there is memory 0.
    load_balance: factor on the loss sown.
    gate_rank: R, of rule "gla".
    conv: width of the convolutions, in tokens; 0 leaves them out.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Router, decays, beta and state stay in float32.
  """

  heads: int = 2
  key_dim: int = 32
  value_dim: int = 64
  rule: str = "gated_delta"
  memories: int = 4
  top_k: int = 2
  shared: bool = True
  load_balance: float = 0.01
  gate_rank: int = 16
  conv: int = 4
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memories S_BPKV, the shared one first, and the inputs before the first."""
    K, V, P = self.key_dim, self.value_dim, self.heads * (self.memories + self.shared)
    past = conv_heads.init_state(
        batch, self.conv, self.dtype, dict(query=self.heads * K, key=P * K, value=P * V))
    return dict(past, S_BPKV=jnp.zeros((batch, P, K, V), jnp.float32))

  def _check(self):
    conv_heads.check(self.conv)
    if self.rule not in RULES:
      raise ValueError(f"rule={self.rule!r} is unknown; choose from {', '.join(RULES)}.")
    if not 1 <= self.top_k <= self.memories:
      raise ValueError(f"top_k={self.top_k} must be from 1 to memories={self.memories}.")

  def _gates(self, x_BTD, P):
    """Returns (log decay [B,T,P] or [B,T,P,K], beta_BTP or None)."""
    if self.rule == "gla":
      low_BTR = Dense(self.gate_rank, use_bias=False, name="decay_in")(x_BTD)
      logit_BTF = Dense(P * self.key_dim, name="decay_out")(low_BTR)
      return rearrange(nn.log_sigmoid(logit_BTF) / 16.0, "b t (p k) -> b t p k", p=P), None
    rate_P = self.param("A_log", step_decay.log_rate_init(1e-3, 16.0), (P,))
    step = Dense(P, bias_init=step_decay.step_bias_init(), name="decay")
    log_a_BTP = step_decay.log_decay(step(x_BTD), rate_P[None, None])
    if self.rule == "simple_gla":
      return log_a_BTP, None
    return log_a_BTP, nn.sigmoid(Dense(P, use_bias=False, name="beta")(x_BTD))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    self._check()
    H, N, past = self.heads, self.memories + self.shared, state or {}
    x32_BTD = x_BTD.astype(jnp.float32)

    def project(name, heads, width, activation):
      return conv_heads.project(
          x_BTD, name, heads, width, conv=self.conv, past=past, segment_ids=segment_ids,
          dtype=self.dtype, activation=activation if self.conv else lambda y: y)

    q_BTHK, past_q = project("query", H, self.key_dim, nn.silu)
    k_BTPK, past_k = project("key", N * H, self.key_dim, nn.silu)
    v_BTPV, past_v = project("value", N * H, self.value_dim, nn.silu)
    if self.rule == "gated_delta":
      q_BTHK, k_BTPK = l2_norm(q_BTHK), l2_norm(k_BTPK)
    q_BTPK = repeat(q_BTHK, "b t h k -> b t (n h) k", n=N)

    weights_BTM, p_BTM = route(Dense(self.memories, use_bias=False, name="router")(x32_BTD), self.top_k)
    if not self.is_initializing():
      real_BT = jnp.ones(x_BTD.shape[:2]) if segment_ids is None else segment_ids >= 0
      self.sow("losses", "load_balance", self.load_balance * balance(weights_BTM, p_BTM, real_BT))
    always_BT1 = jnp.ones((*x_BTD.shape[:2], int(self.shared)), jnp.float32)
    weights_BTN = jnp.concatenate([always_BT1, weights_BTM], axis=-1)
    goes_BTP = repeat(weights_BTN > 0, "b t n -> b t (n h)", h=H)
    rest = lambda y: None if y is None else jnp.where(goes_BTP if y.ndim == 3 else goes_BTP[..., None], y, 0)
    log_a, beta_BTP = map(rest, self._gates(x32_BTD, N * H))

    y_BTPV, S_BPKV = chunk_recurrence(
        q_BTPK, rest(k_BTPK), rest(v_BTPV), log_a, beta_BTP, initial_state=past.get("S_BPKV"),
        segment_ids=segment_ids, return_final_state=True, chunk=self.chunk or None,
        backend=self.backend)
    y_BTNHV = rearrange(y_BTPV, "b t (n h) v -> b t n h v", n=N)
    y_BTHV = jnp.einsum("btnhv,btn->bthv", y_BTNHV, weights_BTN).astype(self.dtype)
    y_BTF = rearrange(RMSNorm(eps=1e-5, name="norm")(y_BTHV), "b t h v -> b t (h v)")
    y_BTF *= nn.silu(Dense(y_BTF.shape[-1], use_bias=False, dtype=self.dtype, name="gate")(x_BTD))
    y_BTD = Dense(x_BTD.shape[-1], use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    return y_BTD, dict(**past_q, **past_k, **past_v, S_BPKV=S_BPKV)
