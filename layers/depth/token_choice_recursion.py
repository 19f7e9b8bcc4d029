"""Mixture-of-Recursions by token choice: each token says at once how often a layer is applied to it.

One router chooses for token t of the stream x, before the first of R recursions i = 0 .. R - 1,

    p_t = softmax(W x_t), or alpha sigmoid(W x_t),   e_t = argmax_i p[t, i]
    h_t^0 = x_t,   h_t^{i+1} = B(h^i of the tokens s with e_s >= i)_t      for i <= e_t
    out_t = x_t + p[t, e_t] h_t^{e_t + 1}              combine = "authors": B has its own residual, this adds x twice
    out_t = x_t + p[t, e_t] (h_t^{e_t + 1} - x_t)      combine = "residual": at p = 1 the recursion itself
    loss = 0.01 R sum_i f_i P_i

with f_i the share of tokens that choose i and P_i the mean of p[t, i] / sum_j p[t, j], over tokens that are no padding:
0.01 where all depths are chosen alike, 0.01 R where one is chosen for sure. A token's choice reads nothing but the
token, so the layer is causal where its mixer is.

Without a loss (bias_rate = u > 0, balance_weight = 0) a bias chooses, and the gates know nothing of it:

    e_t = argmax_i (p[t, i] + b_i)        b_i += u sign(mean load - load_i) after each training batch

It lives in the collection "moe_state", as that of layers/moe/deepseek.py. Where gradients are accumulated, it moves
once per microbatch, by what that one shows.

How many tokens reach a recursion depends on the data, shapes do not, and every recursion computes T tokens. With
keys = "own" those that reach it are put before the others, which become trailing padding of the row: a mixer that
counts positions counts the tokens that reached the recursion, and only the answer is that of less work. In decoding
every recursion has a state of its own, in which a token that does not reach it leaves no trace. With keys = "shared"
all tokens stay where they are: h_t^{i+1} reads, at its place in the whole row, the keys and values that the first
recursion made of all x_s, and there is one state, that of the first. What reaches depth i is "kept_<i>" of "metrics".

Reference: Bae et al., "Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level
Computation", 2025; its bias is that of Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for
Mixture-of-Experts", 2024, with u = 0.001. Not here: blocks of several layers.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import probe, routing, segments, token_cache
from layers.depth import recursion, token_selection

# Dims: B batch, T tokens, D model width, R recursions.

GATES = ("softmax", "sigmoid")


def probabilities(logits_BTR, gate: str, alpha: float):
  """Returns (what weighs the result, the same with sum 1 over recursions)."""
  if gate == "softmax":
    p_BTR = jax.nn.softmax(logits_BTR)
    return p_BTR, p_BTR
  s_BTR = jax.nn.sigmoid(logits_BTR)
  return alpha * s_BTR, s_BTR / jnp.sum(s_BTR, axis=-1, keepdims=True)


def balance(share_BTR, depth_BT, real_BT):
  """Returns R sum_i f_i P_i over the tokens that are real."""
  R = share_BTR.shape[-1]
  total = jnp.maximum(jnp.sum(real_BT), 1)
  mean = lambda a_BTR: jnp.sum(jnp.where(real_BT[..., None], a_BTR, 0.0), axis=(0, 1)) / total
  return R * jnp.sum(mean(jax.nn.one_hot(depth_BT, R)) * mean(share_BTR))


def moved(bias_R, depth_BT, real_BT, rate: float):
  """Returns the bias after a batch: up where a depth was chosen less than the mean, down where more."""
  hot_NR = jax.nn.one_hot(depth_BT.reshape(-1), bias_R.shape[0])
  return routing.moved(bias_R, routing.only(hot_NR, real_BT.reshape(-1)), rate)


def to_front(active_BT):
  """Returns (index_BT that puts the active tokens first, each group in its order; [B, T], True at their new places)."""
  index_BT = jnp.argsort(~active_BT, axis=1, stable=True)
  return index_BT, jnp.arange(active_BT.shape[1])[None] < jnp.sum(active_BT, axis=1)[:, None]


def _pick(choose_B, one, other):
  """Returns the rows of tree `one` where chosen, else of `other`."""
  of_leaf = lambda a, b: jnp.where(choose_B.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)
  return jax.tree.map(of_leaf, one, other)


def _ends(ids_BT):
  """Returns (id of each row's first document, of its last one), -1 in a row of padding."""
  last_B1 = jnp.maximum(segments.tokens_to_last(ids_BT) - 1, 0)[:, None]
  last_B = jnp.take_along_axis(ids_BT, last_B1, axis=1)[:, 0]
  return jnp.maximum(segments.first_segment(ids_BT), -1), jnp.maximum(last_B, -1)


def state_before(state, empty, ids_BT, active_ids_BT):
  """Returns the state that the active tokens start from: none of it where the document it belongs to has none of them.

  Args:
    state: of this recursion, after the tokens before the row.
    empty: the state before any token.
    ids_BT, active_ids_BT: segment ids of the row, and of its active tokens only.
  """
  return _pick(_ends(ids_BT)[0] == _ends(active_ids_BT)[0], state, empty)


def state_after(state, new, empty, ids_BT, active_ids_BT):
  """Returns the state after the row, that of its last document; `new` is what the active tokens left behind."""
  first_B, last_B = _ends(ids_BT)
  last_active_B = _ends(active_ids_BT)[1]
  unmoved = _pick(first_B == last_B, state, empty)
  return _pick((last_active_B >= 0) & (last_active_B == last_B), new, unmoved)


class TokenChoiceRecursion(nn.Module):
  """One layer and its recursions, around the layer that it wraps.

  Attributes:
    block: factory of the layer, given by the stack.
    layer, depth: which of how many, given by the stack.
    recursions: R.
    gate: "softmax" or "sigmoid".
    alpha: the largest weight of a result, of the gate "sigmoid".
    combine: "authors" or "residual".
    keys: "own" or "shared"; what a recursion reads.
    balance_weight: of the balance loss.
    bias_rate: u, per training batch; 0 has no bias.
    ends: layers at each end that are applied once, to all tokens.
    train: whether the bias moves.
  """

  block: Callable[..., nn.Module] | None = None
  layer: int = 0
  depth: int = 1
  recursions: int = 3
  gate: str = "softmax"
  alpha: float = 0.1
  combine: str = "authors"
  keys: str = "own"
  balance_weight: float = 0.01
  bias_rate: float = 0.0
  ends: int = 1
  train: bool = False

  @property
  def states(self) -> int:
    """How many states of its mixer the layer has in decoding."""
    return 1 if self.keys == "shared" else self.recursions

  def ratio_at(self, layer: int, depth: int) -> float | None:
    """Returns the share of tokens that the first recursion sees, None where there is one and no router."""
    recursion.check(self.recursions, self.combine, self.keys)
    if self.gate not in GATES:
      raise ValueError(f"gate={self.gate!r} is unknown; choose from {', '.join(GATES)}.")
    if self.bias_rate < 0:
      raise ValueError(f"bias_rate={self.bias_rate} must be at least 0, which has no bias.")
    return 1.0 if recursion.repeated(layer, depth, self.ends) else None

  @nn.compact
  def __call__(self, x_BTD, context, state, in_scale, alpha, segment_ids=None):
    if state is not None and (not isinstance(state, tuple) or len(state) != self.states):
      raise ValueError(f"recursions={self.recursions} with keys={self.keys!r} needs a tuple of states, {self.states} of "
                       "them, as Stack.init_state has.")
    if jax.tree.leaves(context.carry):
      raise ValueError("TokenChoiceRecursion: what travels beside x has no place for tokens that pass a layer by.")
    block = self.block(name="block")
    recursion.check_mixer(self.keys, block.mixer(parent=None))
    real_BT = jnp.ones(x_BTD.shape[:2], bool) if segment_ids is None else segment_ids >= 0
    logits_BTR = routing.linear(self.recursions, "router")(x_BTD)
    p_BTR, share_BTR = probabilities(logits_BTR, self.gate, self.alpha)
    depth_BT = self._choose(logits_BTR, p_BTR, real_BT)
    run = lambda x_BTD, state, ids_BT: block(x_BTD, context, state, in_scale, alpha, ids_BT)
    if self.keys == "shared":
      h_BTD, after, finals = self._shared(run, x_BTD, state, segment_ids, depth_BT, real_BT)
    else:
      empty = None if state is None else block.mixer(parent=None).init_state(x_BTD.shape[0])
      h_BTD, after, finals = self._own(run, x_BTD, state, empty, segment_ids, depth_BT, real_BT)
    for i in range(self.recursions):
      reached_BT = (depth_BT >= i) & real_BT
      self.sow("metrics", f"kept_{i}", jnp.sum(reached_BT) / jnp.maximum(jnp.sum(real_BT), 1))
    loss = balance(share_BTR, depth_BT, real_BT)
    self.sow("metrics", "balance_loss", loss)
    self.sow("losses", "balance", self.balance_weight * loss)
    p_BT = jnp.take_along_axis(p_BTR, depth_BT[..., None], axis=-1)[..., 0]
    out_BTD = recursion.combined(x_BTD, h_BTD, p_BT, self.combine)
    return jnp.where(real_BT[..., None], out_BTD, x_BTD), after, finals

  def _choose(self, logits_BTR, p_BTR, real_BT):
    """Returns [B, T], the last recursion of every token, and moves the bias where there is one."""
    if not self.bias_rate:
      return jnp.argmax(logits_BTR, axis=-1)  # as of p, which may saturate
    bias = self.variable("moe_state", "bias_R", jnp.zeros, (self.recursions,))
    depth_BT = jnp.argmax(p_BTR + bias.value[None, None], axis=-1)
    if self.train and not self.is_initializing() and self.is_mutable_collection("moe_state"):
      bias.value = moved(bias.value, depth_BT, real_BT, self.bias_rate)
    self.sow("metrics", "bias_max", jnp.max(jnp.abs(bias.value)))
    return depth_BT

  def _own(self, run, x_BTD, state, empty, segment_ids, depth_BT, real_BT):
    """Runs every recursion on the tokens that reach it, put first; returns (h_BTD, context, a state of each)."""
    ids_BT = jnp.where(real_BT, 0, -1) if segment_ids is None else segment_ids
    h_BTD, after, finals = x_BTD, None, []
    for i in range(self.recursions):
      active_BT = (depth_BT >= i) & real_BT
      index_BT, front_BT = to_front(active_BT)
      probe.show(self, "kept_BK", lambda: jnp.where(front_BT, index_BT, -1))
      active_ids_BT = jnp.where(front_BT, token_selection.take(ids_BT, index_BT), -1)
      given = None if state is None else state_before(state[i], empty, ids_BT, active_ids_BT)
      y_BTD, after, new = run(token_selection.take(h_BTD, index_BT), given, active_ids_BT)
      if state is not None:
        finals.append(state_after(state[i], new, empty, ids_BT, active_ids_BT))
      y_BTD = token_selection.take(y_BTD, jnp.argsort(index_BT, axis=1))
      h_BTD = jnp.where(active_BT[..., None], y_BTD, h_BTD)
    return h_BTD, after, None if state is None else tuple(finals)

  def _shared(self, run, x_BTD, state, segment_ids, depth_BT, real_BT):
    """Runs every recursion on the row as it is, those after the first with the sources of the first."""
    h_BTD, after, given = x_BTD, None, token_cache.Open(None if state is None else state[0])
    for i in range(self.recursions):
      active_BT = (depth_BT >= i) & real_BT
      probe.show(self, "kept_BK", lambda: jnp.where(active_BT, jnp.arange(active_BT.shape[1])[None], -1))
      ids_BT = segment_ids if i == 0 else jnp.where(active_BT, 0 if segment_ids is None else segment_ids, -1)
      y_BTD, after, given = run(h_BTD, given, ids_BT)
      h_BTD = jnp.where(active_BT[..., None], y_BTD, h_BTD)
    return h_BTD, after, None if state is None else (given.cache,)
