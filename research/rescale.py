"""Target variance rescaling: every N steps, matrices that grew are brought back to their first spread.

After step n N of the optimizer, for every kernel W of the stack (each layer by itself,
embeddings and head apart) with mean mu and standard deviation sd over all entries:

    if sd > threshold * target:   W <- (W - mu) target / sd + mu,   its bias <- 0

An optax transform that stands after the rule and changes its updates, so that the
optimizer's moments know nothing of it.

Reference: "A Refined Analysis of Massive Activations in LLMs", 2025, with the values
of the published code: 50 steps, target 0.02, threshold 1.2, and the unbiased deviation.
"""

import jax
import jax.numpy as jnp
import optax

from research import parameters


def shrink(W, target: float, threshold: float):
  """Returns (W as the rule wants it, whether it was changed)."""
  mean, deviation = jnp.mean(W), jnp.std(W, ddof=1)
  grown = deviation > threshold * target
  return jnp.where(grown, (W - mean) * (target / jnp.where(grown, deviation, 1.0)) + mean, W), grown


def target_variance_rescaling(every: int, target: float = 0.02, threshold: float = 1.2):
  """Returns the transform; it has to be the last of a chain and to see the parameters.

  Args:
    every: steps from one rescaling to the next.
    target: standard deviation that a grown kernel gets.
    threshold: how many times the target a kernel may have.
  """
  def init(params):
    del params
    return jnp.zeros((), jnp.int32)

  def update(updates, count, params):
    due = (count + 1) % every == 0
    changed = jax.lax.cond(due, lambda u: _rescaled(u, params, target, threshold), lambda u: u, updates)
    return changed, count + 1

  return optax.GradientTransformation(init, update)


def _rescaled(updates, params, target, threshold):
  """Returns the updates that lead to rescaled parameters; others stay bit for bit."""
  flat, tree = jax.tree_util.tree_flatten_with_path(params)
  at = {jax.tree_util.keystr(path): i for i, (path, _) in enumerate(flat)}
  new = jax.tree.leaves(updates)
  for i, (path, W) in enumerate(flat):
    role = parameters.role(path, W)
    if role.leaf != "kernel" or not any(entry.key == "stack" for entry in path):
      continue
    one = lambda W: shrink(W, target, threshold)
    for _ in role.lead:
      one = jax.vmap(one)
    after, grown = one(W + new[i])
    spread = lambda x: grown.reshape(grown.shape + (1,) * (x.ndim - grown.ndim))
    new[i] = jnp.where(spread(W), after - W, new[i])
    bias = at.get(jax.tree_util.keystr((*path[:-1], jax.tree_util.DictKey("bias"))))
    if bias is not None:
      new[bias] = jnp.where(spread(flat[bias][1]), -flat[bias][1], new[bias])
  return jax.tree.unflatten(tree, new)
