"""The soft mixture: every token uses every expert, weighted by a softmax.

    gates = softmax(x W)

There is nothing to balance and nothing to save: what the sparse routers approximate.

Reference: Jacobs et al., "Adaptive Mixtures of Local Experts", 1991, with one logit per expert.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import routing


class Soft(nn.Module):
  """The router; its choices are all of the `experts`."""

  experts: int = 8

  @nn.compact
  def __call__(self, x_ND, carry=None, real_N=None):
    gates_NE = jax.nn.softmax(routing.linear(self.experts, "logits")(x_ND.astype(jnp.float32)))
    return routing.Routing(gates_NE, None, {}, dict(router_entropy=routing.entropy(gates_NE, real_N)), carry)
