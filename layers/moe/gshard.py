"""GShard's router: softmax over all experts, the K best of them, their weights made to sum to 1.

    p = softmax(x W)        gates = p over the K largest, divided by their sum
    balance = E sum_e f_e P_e        f_e share of tokens with e among their first `slots` choices, P_e mean of p

Renormalising chosen probabilities is the same as a softmax over the chosen logits, so this is
also the router of Mixtral and JetMoE, which count all K choices: slots = K, balance K at best.

References: Lepikhin et al., "GShard: Scaling Giant Models with Conditional Computation and Automatic
Sharding", 2021, algorithm 1; Jiang et al., "Mixtral of Experts", 2024. In place of GShard's
groups the balance is that of the whole batch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import routing
from layers.moe import losses

# Dims: N tokens, D model width, E experts, K experts per token.


def top_k(p_NE, k: int):
  """Returns (gates_NE summing to 1 over the k largest, indices_NK); among equals the lower index wins."""
  p_NK, indices_NK = jax.lax.top_k(p_NE, k)
  gates_NK = p_NK / jnp.sum(p_NK, axis=-1, keepdims=True)
  return routing.scatter(gates_NK, indices_NK, p_NE.shape[-1]), indices_NK


def assigned(indices_NK, slots: int, experts: int):
  """Returns [N, E]: 1 where an expert is among a token's first `slots` choices."""
  return jnp.sum(jax.nn.one_hot(indices_NK[:, :slots], experts), axis=1)


class GShard(nn.Module):
  """The router.

  Attributes:
    experts: E.
    top_k: K.
    slots: choices of a token that the balance loss counts, from 1 to K.
    random_second: chance of using the choices after the first is min(1, 2 gate), in training; else they are dropped.
    balance_weight, z_weight: of the losses.
    train: whether choices are random.
  """

  experts: int = 8
  top_k: int = 2
  slots: int = 1
  random_second: bool = False
  balance_weight: float = 0.01
  z_weight: float = 0.0
  train: bool = False

  @nn.compact
  def __call__(self, x_ND, carry=None, real_N=None):
    routing.check_top_k(self.top_k, self.experts)
    if not 1 <= self.slots <= self.top_k:
      raise ValueError(f"slots={self.slots} must be from 1 to top_k={self.top_k}.")
    logits_NE = routing.linear(self.experts, "logits")(x_ND.astype(jnp.float32))
    p_NE = jax.nn.softmax(logits_NE)
    gates_NE, indices_NK = top_k(p_NE, self.top_k)
    found = dict(balance=losses.balance(p_NE, assigned(indices_NK, self.slots, self.experts), real_N),
                 z=losses.z(logits_NE, real_N))
    if self.random_second and self.train:
      lucky_NE = jax.random.uniform(self.make_rng("dropout"), gates_NE.shape) < 2 * gates_NE
      first_NE = jax.nn.one_hot(indices_NK[:, 0], self.experts, dtype=bool)
      gates_NE = jnp.where(lucky_NE | first_NE, gates_NE, 0.0)
    return routing.Routing(gates_NE, indices_NK, found, dict(router_entropy=routing.entropy(p_NE, real_N)), carry)
