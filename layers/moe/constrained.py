"""The deep mixture's gate: a two-layer softmax over all experts, and a pause for experts that had too much.

    g = softmax(W2 relu(W1 x + b1) + b2)
    expert e gets 0, the others are renormalised, while G_e - mean(G) > m;        G_e += mean_n g[n, e] each batch

The constraint holds for the first `steps` training batches, until all experts have learned
something, and is then lifted. All experts with a gate are computed.

State, in "moe_state": G - mean(G), the only part that is ever used, and the step. Departure:
the paper decides example by example, here a batch is decided by the totals before it.

Reference: Eigen, Ranzato, Sutskever, "Learning Factored Representations in a Deep Mixture of Experts",
2013, sections 3 and 3.1.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import routing

# Dims: N tokens, D model width, H hidden width of the gate, E experts.


class Constrained(nn.Module):
  """The router.

  Attributes:
    experts: E.
    hidden: H.
    margin: m, in batches that an expert takes alone.
    steps: training batches in which the constraint holds.
    train: whether it holds at all, and totals grow.
  """

  experts: int = 4
  hidden: int = 32
  margin: float = 0.5
  steps: int = 1000
  train: bool = False

  @nn.compact
  def __call__(self, x_ND, carry=None, real_N=None):
    if self.margin <= 0:
      raise ValueError(f"margin={self.margin} must be above 0, or experts that are exactly even would pause.")
    if self.hidden < 1:
      raise ValueError(f"hidden={self.hidden} must be at least 1; the gate sees the token through it alone.")
    h_NH = nn.relu(routing.linear(self.hidden, "hidden", bias=True)(x_ND.astype(jnp.float32)))
    logits_NE = routing.linear(self.experts, "logits", bias=True)(h_NH)
    excess = self.variable("moe_state", "excess_E", jnp.zeros, (self.experts,))
    step = self.variable("moe_state", "step", jnp.zeros, ())
    pause_E = (excess.value > self.margin) & (step.value < self.steps) & self.train
    # A softmax without the paused logits is the softmax with them, renormalised.
    gates_NE = jax.nn.softmax(jnp.where(pause_E[None], -jnp.inf, logits_NE))
    if self.train and not self.is_initializing() and self.is_mutable_collection("moe_state"):
      given_E = jax.lax.stop_gradient(routing.mean(gates_NE, real_N))
      excess.value = excess.value + given_E - jnp.mean(given_E)
      step.value = step.value + 1.0
    stats = dict(router_entropy=routing.entropy(gates_NE, real_N), paused=jnp.mean(pause_E, dtype=jnp.float32))
    return routing.Routing(gates_NE, None, {}, stats, carry)
