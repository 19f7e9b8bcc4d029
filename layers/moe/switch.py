"""The Switch router: each token goes to the one expert with the largest probability.

    p = softmax(u x W)        y = p_e* expert_e*(x), e* = argmax p        u ~ U[1 - j, 1 + j] in training
    balance = E sum_e f_e P_e        f_e share of tokens with e* = e, P_e mean of p

The gate stays p_e*, so that the task's gradient reaches the router.

Reference: Fedus, Zoph, Shazeer, "Switch Transformers: Scaling to Trillion Parameter Models with Simple
and Efficient Sparsity", 2022, sections 2.1 to 2.4; z-loss: Zoph et al., "ST-MoE", 2022.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import routing
from layers.moe import losses

# Dims: N tokens, D model width, E experts.


class Switch(nn.Module):
  """The router.

  Attributes:
    experts: E.
    jitter: j, of the router's input.
    balance_weight, z_weight: of the losses.
    train: whether the input is jittered.
  """

  experts: int = 8
  jitter: float = 0.01
  balance_weight: float = 0.01
  z_weight: float = 0.0
  train: bool = False

  @nn.compact
  def __call__(self, x_ND, carry=None, real_N=None):
    routing.check_top_k(1, self.experts)
    x_ND = x_ND.astype(jnp.float32)
    if self.train and self.jitter:
      x_ND *= jax.random.uniform(self.make_rng("dropout"), x_ND.shape, minval=1 - self.jitter, maxval=1 + self.jitter)
    small = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
    logits_NE = routing.linear(self.experts, "logits", small)(x_ND)
    p_NE = jax.nn.softmax(logits_NE)
    p_N1, indices_N1 = jax.lax.top_k(p_NE, 1)
    hot_NE = jax.nn.one_hot(indices_N1[:, 0], self.experts)
    found = dict(balance=losses.balance(p_NE, hot_NE, real_N), z=losses.z(logits_NE, real_N))
    stats = dict(router_entropy=routing.entropy(p_NE, real_N))
    return routing.Routing(p_N1 * hot_NE, indices_N1, found, stats, carry)
