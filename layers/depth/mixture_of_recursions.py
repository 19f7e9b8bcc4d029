"""Mixture-of-Recursions by expert choice: one layer applied again and again, each time to fewer tokens.

Of the middle layers of a stack, each is applied up to R times. At recursion r = 1 .. R, among the tokens still
active, the int(c_r T) with the largest score stay, c_r = (R - r + 1) / R of the whole row:

    p_t = alpha sigmoid(x_t . w_r),  alpha = 0.1
    x_t <- x_t + p_t B(x_kept)_t              combine = "authors": B has its own residual, so this adds x twice
    x_t <- x_t + p_t (B(x_kept)_t - x_t)      combine = "residual": at p = 1 and c = 1 the R-fold recursion
    loss = 0.001 sum_r BCE(x_t . w_r, t is kept), mean over the tokens offered to r

Which tokens are kept is known only at the end of a row: not causal, and the loss is there so that a sign can decide
in decoding. How often x_t . w_r > 0 says what was chosen, mean over r >= 2, is shown as "choice_accuracy"; the first
recursion keeps all. Decoding itself, which needs a state for each recursion, is not here. Where each token chooses for
itself: layers/depth/token_choice_recursion.py.

With keys = "own" a recursion makes keys and values of the tokens that it keeps, numbered anew
(layers/depth/token_selection.py). With keys = "shared" it makes queries of them, at their places in the whole row,
and reads what the first recursion made of all tokens: more sources, and less to compute and to store.

Reference: Bae et al., "Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level
Computation", 2025. Its block is several layers; here it is one.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import probe, token_cache
from layers.dense import Dense
from layers.depth import recursion, token_selection

# Dims: B batch, T tokens, K kept tokens, D model width.


def read_by(sources: token_cache.Sources, index_BK) -> token_cache.Sources:
  """Returns the sources of a row as its kept tokens read them."""
  take = lambda a: token_selection.take(a, index_BK)
  return sources._replace(mask_BTS=take(sources.mask_BTS), position_BT=take(sources.position_BT))


class MixtureOfRecursions(nn.Module):
  """One layer and its recursions, around the layer that it wraps.

  Attributes:
    block: factory of the layer, given by the stack.
    layer, depth: which of how many, given by the stack.
    recursions: R.
    alpha: the largest weight of an update.
    combine: "authors" or "residual".
    keys: "own" or "shared"; what a recursion reads.
    router_weight: of the cross entropy.
    ends: layers at each end that are applied once, to all tokens.
  """

  block: Callable[..., nn.Module] | None = None
  layer: int = 0
  depth: int = 1
  recursions: int = 3
  alpha: float = 0.1
  combine: str = "authors"
  keys: str = "own"
  router_weight: float = 0.001
  ends: int = 1

  causal = False

  def ratio_at(self, layer: int, depth: int) -> float | None:
    """Returns the share of tokens that the first recursion sees, None where there is one and no router."""
    recursion.check(self.recursions, self.combine, self.keys)
    return 1.0 if recursion.repeated(layer, depth, self.ends) else None

  @nn.compact
  def __call__(self, x_BTD, context, state, in_scale, alpha, segment_ids=None):
    if state is not None:
      raise ValueError(f"recursions={self.recursions}: this layer has no state for decoding; give it whole rows.")
    if jax.tree.leaves(context.carry):
      raise ValueError("MixtureOfRecursions: tokens that pass a layer by have no place in what travels beside x.")
    block, T, R = self.block(name="block"), x_BTD.shape[1], self.recursions
    recursion.check_mixer(self.keys, block.mixer(parent=None))
    active_BT = jnp.ones(x_BTD.shape[:2], bool) if segment_ids is None else segment_ids >= 0
    after, sources, loss, right = context, None, 0.0, []
    for r in range(R):
      logits_BT = Dense(1, use_bias=False, dtype=jnp.float32, name=f"router_{r}")(x_BTD.astype(jnp.float32))[..., 0]
      # Only tokens that the last recursion kept are offered to this one.
      scores_BT = jnp.where(active_BT, logits_BT, -jnp.inf)
      index_BK = token_selection.top(scores_BT, token_selection.count((R - r) / R, T))
      probe.show(self, "kept_BK", lambda: index_BK)
      run = lambda x, s, ids, gain: block(x, context, s, in_scale, alpha, ids, gain)
      given = None
      if self.keys == "shared":
        given = token_cache.Open(None) if r == 0 else read_by(sources, index_BK)
      y_BTD, after, left = token_selection.run_top(run, x_BTD, segment_ids, index_BK, None, given)
      sources = left if r == 0 else sources  # of all tokens in their order: the first recursion keeps all
      kept_BT = token_selection.kept(index_BK, T) & active_BT
      p_BT = self.alpha * jax.nn.sigmoid(logits_BT)
      x_BTD = jnp.where(kept_BT[..., None], recursion.combined(x_BTD, y_BTD, p_BT, self.combine), x_BTD)
      miss_BT = jnp.where(active_BT, jax.nn.softplus(logits_BT) - kept_BT * logits_BT, 0.0)
      offered = jnp.maximum(jnp.sum(active_BT), 1)
      loss += jnp.sum(miss_BT) / offered
      right.append(jnp.sum(active_BT & ((logits_BT > 0) == kept_BT)) / offered)
      self.sow("metrics", f"kept_{r}", jnp.mean(kept_BT.astype(jnp.float32)))
      active_BT = kept_BT
    if R > 1:
      self.sow("metrics", "choice_accuracy", sum(right[1:]) / (R - 1))
    self.sow("losses", "choice", self.router_weight * loss)
    return x_BTD, after, None
