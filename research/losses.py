"""Cross-entropy and accuracy as (sum, weight) pairs, in float32.

Sums and weights add up over hosts, microbatches and steps without rounding away
how many tokens each part had: the mean is taken once, at the end, sum / weight.
"""

import jax
import jax.numpy as jnp

# Dims: ... any leading dims (B, or B and T), V classes.


def cross_entropy(logits_V, labels, weights):
  """Sum of weight * (logsumexp(logits) - logits[label]) in nats.

  Args:
    logits_V: scores, [..., V], any float dtype.
    labels: the right class, [...], whole numbers in [0, V).
    weights: [...]; 0 leaves an example out.

  Returns:
    (weighted sum of the losses, sum of the weights), float32 scalars.
  """
  logits_V = logits_V.astype(jnp.float32)
  weights = weights.astype(jnp.float32)
  right = jnp.take_along_axis(logits_V, labels[..., None], axis=-1)[..., 0]
  nats = jax.nn.logsumexp(logits_V, axis=-1) - right
  return jnp.sum(nats * weights), jnp.sum(weights)


def accuracy(logits_V, labels, weights):
  """How often the highest score is the label's; arguments and form as `cross_entropy`."""
  weights = weights.astype(jnp.float32)
  right = jnp.argmax(logits_V, axis=-1) == labels
  return jnp.sum(right.astype(jnp.float32) * weights), jnp.sum(weights)
