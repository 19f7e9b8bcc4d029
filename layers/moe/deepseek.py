"""DeepSeek-V3's router: sigmoid scores, groups of experts, and a bias in place of a loss.

    s = sigmoid(x W)        c = s + b        b in R^E, without gradient
    of G groups the M with the largest sums of their two best c are kept, and of their experts the K best c
    gates = r s / sum of the chosen s        from s, not from c
    b_e += u sign(mean load - load_e)        after each training batch, load counted over all of it

    balance = mean over rows of E sum_e f_e P_e        f_e = count_e / (K T), P_e = mean_t s_te / sum_e s_te

The bias lives in the collection "moe_state". Experts of other groups get -inf, not 0: with a
negative bias a zero would win. Where gradients are accumulated, the bias moves once per
microbatch, by what that one shows.

References: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, sections 2.1.2 and 4.2 (deviation 0.006 at first);
Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", 2024; Zhao et al., "Insights into
DeepSeek-V3: Scaling Challenges and Reflections on Hardware for AI Architectures", 2025.
"""

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import routing
from layers.moe import losses

# Dims: N tokens, D model width, E experts, K experts per token, G groups, M groups kept, I experts of a group.


def limit_groups(scores_NE, groups: int, kept: int):
  """Returns the scores with -inf outside the `kept` groups whose two best scores sum to the most."""
  if kept == groups:
    return scores_NE
  scores_NGI = rearrange(scores_NE, "n (g i) -> n g i", g=groups)
  best_NG = jnp.sum(jax.lax.top_k(scores_NGI, min(2, scores_NGI.shape[-1]))[0], axis=-1)
  kept_NM = jax.lax.top_k(best_NG, kept)[1]
  open_NG = jnp.sum(jax.nn.one_hot(kept_NM, groups), axis=1) > 0
  return rearrange(jnp.where(open_NG[..., None], scores_NGI, -jnp.inf), "n g i -> n (g i)")


class DeepSeek(nn.Module):
  """The router.

  Attributes:
    experts: E.
    top_k: K.
    groups: G, of consecutive experts.
    kept_groups: M.
    route_scale: r, what the gates sum to.
    bias_rate: u, per training batch; 0 leaves the bias at 0.
    balance_weight: of the loss per row.
    tokens: per row of the batch; 0 takes all as one row.
    train: whether the bias moves.
  """

  experts: int = 8
  top_k: int = 2
  groups: int = 1
  kept_groups: int = 1
  route_scale: float = 1.0
  bias_rate: float = 1e-3
  balance_weight: float = 0.0
  tokens: int = 0
  train: bool = False

  per_row = True

  def _check(self):
    routing.check_top_k(self.top_k, self.experts)
    if self.groups < 1 or self.experts % self.groups:
      raise ValueError(f"groups={self.groups} must divide experts={self.experts}.")
    if not 1 <= self.kept_groups <= self.groups:
      raise ValueError(f"kept_groups={self.kept_groups} must be from 1 to groups={self.groups}.")
    reach = self.kept_groups * self.experts // self.groups
    if self.top_k > reach:
      raise ValueError(f"top_k={self.top_k} is more than the {reach} experts of kept_groups={self.kept_groups} "
                       f"of groups={self.groups}; keep more groups.")

  @nn.compact
  def __call__(self, x_ND, carry=None, real_N=None):
    self._check()
    logits_NE = routing.linear(self.experts, "logits", nn.initializers.normal(0.006))(x_ND.astype(jnp.float32))
    log_NE = jax.nn.log_sigmoid(logits_NE)
    bias = self.variable("moe_state", "bias_E", jnp.zeros, (self.experts,))
    biased_NE = jnp.exp(jax.lax.stop_gradient(log_NE)) + bias.value[None]
    indices_NK = jax.lax.top_k(limit_groups(biased_NE, self.groups, self.kept_groups), self.top_k)[1]
    # s / sum s as a softmax of log s: no 0 / 0 where all chosen scores underflow.
    gates_NK = self.route_scale * jax.nn.softmax(jnp.take_along_axis(log_NE, indices_NK, axis=1))
    hot_NE = routing.scatter(jnp.ones_like(gates_NK), indices_NK, self.experts)
    gates_NE = routing.scatter(gates_NK, indices_NK, self.experts)
    if self.train and not self.is_initializing() and self.is_mutable_collection("moe_state"):
      bias.value = routing.moved(bias.value, routing.only(hot_NE, real_N), self.bias_rate)
    p_NE = jax.nn.softmax(log_NE)
    found = dict(balance=losses.row_balance(p_NE, hot_NE, self.tokens or x_ND.shape[0], real_N))
    stats = dict(router_entropy=routing.entropy(p_NE, real_N), bias_max=jnp.max(jnp.abs(bias.value)))
    return routing.Routing(gates_NE, indices_NK, found, stats, carry)
