"""Noisy top-k gating: learned noise on the logits and two losses keep all experts in use.

    clean = x W        H = clean + s eps, s = softplus(x W_noise) + 0.01, eps ~ N(0, 1) in training, 0 otherwise
    gates = softmax over the K largest H, 0 elsewhere
    importance = CV^2_e sum_n gates[n, e]        load = CV^2_e sum_n P[n, e]

P[n, e] is the chance that e is chosen when only its own noise is drawn anew; without
noise, or with K = E, the load is a count and has no gradient. Both matrices start at 0:
all experts are alike then, and noise alone chooses.

`VMoE` is the variant of vision models: a softmax over all experts, its K largest values
as gates as they are, noise of fixed deviation noise_std / E on the logits, importance
from the noise-free probabilities, and a load threshold that is the K-th noisy logit for every expert.
There P is averaged over all tokens, not within groups, and GShard's balance of the noisy probabilities
is `balance`.

References: Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts
Layer", 2017, section 2.1 and appendix A; Riquelme et al., "Scaling Vision with Sparse Mixture of Experts", 2021.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import routing
from layers.moe import losses

# Dims: N tokens, D model width, E experts, K experts per token.


class NoisyTopK(nn.Module):
  """The router of 2017.

  Attributes:
    experts: E.
    top_k: K.
    importance_weight, load_weight: of the losses.
    train: whether there is noise.
  """

  experts: int = 8
  top_k: int = 2
  importance_weight: float = 0.1
  load_weight: float = 0.1
  train: bool = False

  @nn.compact
  def __call__(self, x_ND, carry=None, real_N=None):
    routing.check_top_k(self.top_k, self.experts)
    x_ND = x_ND.astype(jnp.float32)
    zeros = nn.initializers.zeros
    clean_NE = routing.linear(self.experts, "logits", zeros)(x_ND)
    std_NE = jax.nn.softplus(routing.linear(self.experts, "noise", zeros)(x_ND)) + 0.01
    noisy_NE = clean_NE
    if self.train:
      noisy_NE += std_NE * jax.random.normal(self.make_rng("dropout"), clean_NE.shape)
    h_NK, indices_NK = jax.lax.top_k(noisy_NE, self.top_k)
    gates_NE = routing.scatter(jax.nn.softmax(h_NK), indices_NK, self.experts)
    if self.train and self.top_k < self.experts:
      load_NE = losses.chance(clean_NE, noisy_NE, std_NE, self.top_k)
    else:
      load_NE = (gates_NE > 0).astype(jnp.float32)
    found = dict(importance=losses.importance(routing.only(gates_NE, real_N)),
                 load=losses.cv_squared(jnp.sum(routing.only(load_NE, real_N), axis=0)))
    stats = dict(router_entropy=routing.entropy(jax.nn.softmax(clean_NE), real_N))
    return routing.Routing(gates_NE, indices_NK, found, stats, carry)


class VMoE(nn.Module):
  """The router of vision models.

  Attributes:
    experts: E.
    top_k: K.
    noise_std: deviation of the noise, times E.
    importance_weight, load_weight, balance_weight: of the losses.
    train: whether there is noise.
  """

  experts: int = 8
  top_k: int = 2
  noise_std: float = 1.0
  importance_weight: float = 0.005
  load_weight: float = 0.005
  balance_weight: float = 0.0
  train: bool = False

  @nn.compact
  def __call__(self, x_ND, carry=None, real_N=None):
    routing.check_top_k(self.top_k, self.experts)
    if self.noise_std <= 0:
      raise ValueError(f"noise_std={self.noise_std} must be above 0: the load loss divides by it.")
    clean_NE = routing.linear(self.experts, "logits")(x_ND.astype(jnp.float32))
    std, noisy_NE = self.noise_std / self.experts, clean_NE
    if self.train:
      noisy_NE += std * jax.random.normal(self.make_rng("dropout"), clean_NE.shape)
    p_NE, noisy_p_NE = jax.nn.softmax(clean_NE), jax.nn.softmax(noisy_NE)
    p_NK, indices_NK = jax.lax.top_k(noisy_p_NE, self.top_k)
    threshold_N1 = jax.lax.top_k(noisy_NE, self.top_k)[0][:, -1:]
    load_NE = jax.scipy.stats.norm.cdf((clean_NE - threshold_N1) / std)
    found = dict(importance=losses.importance(routing.only(p_NE, real_N)),
                 load=losses.cv_squared(routing.mean(load_NE, real_N)),
                 balance=losses.balance(noisy_p_NE, jax.nn.one_hot(indices_NK[:, 0], self.experts), real_N))
    gates_NE = routing.scatter(p_NK, indices_NK, self.experts)
    stats = dict(router_entropy=routing.entropy(p_NE, real_N))
    return routing.Routing(gates_NE, indices_NK, found, stats, carry)
