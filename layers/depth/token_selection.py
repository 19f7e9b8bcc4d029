"""Runs a layer on the tokens that a router keeps; the others pass it by.

    index = the k largest scores of a row, in their order in the row
    out_t = x_t + update_t (layer(x_index)_t - x_t)     t kept;  update 1 unless given
    out_t = skip_t x_t                                  else;    skip 1 unless given

Which tokens are the k largest is known only at the end of a row, so a row without a state is not causal. With a
state, tokens come one by one and a predictor decides for each; one that is passed by leaves no trace in the state.
The predictor reads x without a gradient and learns the choice of the row by binary cross entropy.

Kept tokens are numbered anew: a mixer that counts positions counts kept ones. (gamma-MoD does so; p-MoD keeps the
places of the row, which no mixer here can be told.)
"""

import jax
import jax.numpy as jnp

from layers import probe
from layers.dense import Dense

# Dims: B batch, T tokens, K kept tokens, D model width.


def count(ratio: float, T: int) -> int:
  """Returns how many of T tokens are kept, at least one.

  Raises:
    ValueError: a ratio outside 0 to 1.
  """
  if not 0 < ratio <= 1:
    raise ValueError(f"ratio={ratio} must be above 0 and at most 1, the share of tokens that are kept.")
  return max(1, int(ratio * T))


def top(scores_BT, K: int, ids_BT=None):
  """Returns index_BK of the largest scores, rising; padding comes last whatever its score."""
  scores_BT = scores_BT.astype(jnp.float32)
  if ids_BT is not None:
    scores_BT = jnp.where(ids_BT >= 0, scores_BT, -jnp.inf)
  return jnp.sort(jax.lax.top_k(scores_BT, K)[1], axis=-1)


def kept(index_BK, T: int):
  """Returns [B, T], True where a token is kept."""
  return jnp.any(index_BK[:, :, None] == jnp.arange(T)[None, None], axis=1)


def take(x_BT, index_BK):
  """Returns the rows of x (any further axes) at the kept tokens."""
  index = index_BK.reshape(index_BK.shape + (1,) * (x_BT.ndim - 2))
  return jnp.take_along_axis(x_BT, index, axis=1)


def run_top(layer, x_BTD, ids_BT, index_BK, gain_BT, state=None):
  """Runs `layer`, (x, state, ids, gain) -> (y, context, state), on the kept tokens.

  Returns:
    (x with y at the kept tokens, context, state).
  """
  pick = lambda a: None if a is None else take(a, index_BK)
  y_BKD, context, state = layer(take(x_BTD, index_BK), state, pick(ids_BT), pick(gain_BT))
  rows_B1 = jnp.arange(x_BTD.shape[0])[:, None]
  return x_BTD.at[rows_B1, index_BK].set(y_BKD), context, state


def route(module, layer, x_BTD, context, state, ids_BT, *, scores_BT, ratio, predictor_weight,
          gain_BT=None, update_BT=None, skip_BT=None, logits_BT=None):
  """Runs `layer` where it is to run; see the file's first lines. Called from a compact method.

  Args:
    module: whose method calls; it gets the submodule "predictor".
    layer: (x_BTD, state, ids_BT, gain_BT) -> (y_BTD, context, state), the layer with its residual.
    x_BTD, context, state, ids_BT: as a layer of the stack gets them.
    scores_BT: what the choice is made by.
    ratio: share of the tokens that are kept.
    predictor_weight: of the predictor's loss.
    gain_BT: factor on what the channel mixer adds, handed to the layer.
    update_BT, skip_BT: see the equations.
    logits_BT: what decides in decoding; None makes the predictor.

  Returns:
    (out_BTD, context, state).
  """
  B, T, _ = x_BTD.shape
  if jax.tree.leaves(context.carry):
    raise ValueError(f"{type(module).__name__}: a layer that hands on something beside x has no place for tokens that "
                     "pass it by; take a mixer and a channel mixer without a context.")
  if logits_BT is None:
    fixed_BTD = jax.lax.stop_gradient(x_BTD).astype(jnp.float32)
    logits_BT = Dense(1, name="predictor")(fixed_BTD)[..., 0]
  if state is None:
    index_BK = top(scores_BT, count(ratio, T), ids_BT)
    probe.show(module, "kept_BK", lambda: index_BK)
    y_BTD, context, _ = run_top(layer, x_BTD, ids_BT, index_BK, gain_BT)
    chosen_BT = kept(index_BK, T)
    _teach(module, logits_BT, chosen_BT, ids_BT, predictor_weight)
  else:
    chosen_BT = logits_BT > 0
    y_BTD, context, state = _one_by_one(layer, x_BTD, context, state, ids_BT, chosen_BT, gain_BT)
  if update_BT is not None:
    y_BTD = x_BTD + update_BT[..., None].astype(x_BTD.dtype) * (y_BTD - x_BTD)
  passed_BTD = x_BTD if skip_BT is None else (skip_BT[..., None] * x_BTD).astype(x_BTD.dtype)
  return jnp.where(chosen_BT[..., None], y_BTD, passed_BTD), context, state


def _one_by_one(layer, x_BTD, context, state, ids_BT, chosen_BT, gain_BT):
  """Runs every token in turn, keeping the state of the chosen ones."""
  ys, after = [], context
  for t in range(x_BTD.shape[1]):
    at = lambda a: None if a is None else a[:, t:t + 1]
    y_B1D, after, new = layer(x_BTD[:, t:t + 1], state, at(ids_BT), at(gain_BT))
    keep = lambda n, o: jnp.where(chosen_BT[:, t].reshape((-1,) + (1,) * (n.ndim - 1)), n, o)
    state = jax.tree.map(keep, new, state)
    ys.append(y_B1D)
  return jnp.concatenate(ys, axis=1), after, state


def _teach(module, logits_BT, chosen_BT, ids_BT, weight):
  """Sows the predictor's loss and how often it is right, over tokens that are no padding."""
  real_BT = jnp.ones_like(chosen_BT) if ids_BT is None else ids_BT >= 0
  total = jnp.maximum(jnp.sum(real_BT), 1)
  mean = lambda a_BT: jnp.sum(jnp.where(real_BT, a_BT, 0.0)) / total
  loss = mean(jax.nn.softplus(logits_BT) - chosen_BT * logits_BT)
  module.sow("losses", "choice", weight * loss)
  module.sow("metrics", "predictor_loss", loss)
  module.sow("metrics", "predictor_accuracy", mean((logits_BT > 0) == chosen_BT))
  module.sow("metrics", "kept", mean(chosen_BT.astype(jnp.float32)))
