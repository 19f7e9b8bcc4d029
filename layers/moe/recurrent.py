"""RMoE's router: a recurrence over depth tells each layer how the token was routed before.

    u_l = W1_l x_l        h_l = GRU(u_l, h_{l-1}), h_0 = 0        logits = W2_l h_l
    r = sigmoid(W_ir u + W_hr h + b_r)        z = sigmoid(W_iz u + W_hz h + b_z)
    n = tanh(W_in u + b_in + r (W_hn h + b_hn))        h' = (1 - z) n + z h

Gates are a softmax, its K largest values made to sum to 1; balance counts all K choices. Tokens
do not meet, so decoding needs no state: h starts anew with every token and travels as the
stack's carry.

Departure: the paper shares one cell among all layers; here every layer has its own, as layers
of this stack share no parameters. The two biases of r and z, which only appear as a sum, are one.

Reference: Qiu et al., "Layerwise Recurrent Router for Mixture-of-Experts", 2024, section 3.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import routing
from layers.moe import gshard, losses

# Dims: N tokens, D model width, E experts, K experts per token, P width of the recurrence.


def gru(in_NQ, past_NQ, bias_NP, h_NP):
  """Returns the next state.

  Args:
    in_NQ: what the input says to r, z and n, biases included, Q = 3 P.
    past_NQ: what the old state says to them, without bias.
    bias_NP: added to the old state's word on n, inside the reset.
    h_NP: old state.
  """
  in_r, in_z, in_n = jnp.split(in_NQ, 3, axis=-1)
  past_r, past_z, past_n = jnp.split(past_NQ, 3, axis=-1)
  r_NP, z_NP = jax.nn.sigmoid(in_r + past_r), jax.nn.sigmoid(in_z + past_z)
  n_NP = jnp.tanh(in_n + r_NP * (past_n + bias_NP))
  return (1 - z_NP) * n_NP + z_NP * h_NP


class Recurrent(nn.Module):
  """The router.

  Attributes:
    experts: E.
    top_k: K.
    state_dim: P.
    balance_weight: of the loss.
  """

  experts: int = 8
  top_k: int = 2
  state_dim: int = 256
  balance_weight: float = 1e-3

  needs_carry = True

  def init_carry(self, rows: int):
    """Returns h before the first layer."""
    return jnp.zeros((rows, self.state_dim), jnp.float32)

  @nn.compact
  def __call__(self, x_ND, carry=None, real_N=None):
    routing.check_top_k(self.top_k, self.experts)
    if self.state_dim < 1:
      raise ValueError(f"state_dim={self.state_dim} must be at least 1; the router sees the token through it alone.")
    if carry is None:
      raise ValueError("carry=None: this router reads the state of the layer before; start with init_carry.")
    small, P = nn.initializers.normal(0.02), self.state_dim
    u_NP = routing.linear(P, "reduce", small)(x_ND.astype(jnp.float32))
    in_NQ = routing.linear(3 * P, "input", nn.initializers.orthogonal(), bias=True)(u_NP)
    past_NQ = routing.linear(3 * P, "past", nn.initializers.orthogonal())(carry)
    bias_P = self.param("bias", nn.initializers.zeros, (P,))
    h_NP = gru(in_NQ, past_NQ, bias_P[None], carry)
    p_NE = jax.nn.softmax(routing.linear(self.experts, "logits", small)(h_NP))
    gates_NE, indices_NK = gshard.top_k(p_NE, self.top_k)
    found = dict(balance=losses.balance(p_NE, gshard.assigned(indices_NK, self.top_k, self.experts), real_N))
    return routing.Routing(gates_NE, indices_NK, found, dict(router_entropy=routing.entropy(p_NE, real_N)), h_NP)
