"""Expert choice: the experts choose their tokens, each the same number of them.

    s = softmax_e(x W)        expert e takes the C = c N / E tokens with the largest s[:, e]        gates = s

Load is even by construction; a token gets from 0 to E experts, c on average. Which tokens an
expert takes depends on all tokens of the batch, later ones too: this is for encoders, and a
language model trained with it reads its future.

Reference: Zhou et al., "Mixture-of-Experts with Expert Choice Routing", 2022; here the group is the batch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import routing

# Dims: N tokens, D model width, E experts, C tokens per expert.


class ExpertChoice(nn.Module):
  """The router.

  Attributes:
    experts: E.
    choices: c, experts per token on average.
  """

  experts: int = 8
  choices: float = 2.0

  causal = False
  mixes_tokens = True

  @nn.compact
  def __call__(self, x_ND, carry=None, real_N=None):
    N, E = x_ND.shape[0], self.experts
    C = int(self.choices * N / E)
    if not 1 <= C <= N:
      raise ValueError(f"choices={self.choices} lets each of {E} experts take {C} of {N} tokens; it must take from 1 "
                       "to all of them: change choices, or route more tokens at once.")
    p_NE = jax.nn.softmax(routing.linear(E, "logits")(x_ND.astype(jnp.float32)))
    chosen_EC = jax.lax.top_k(routing.only(p_NE, real_N).T, C)[1]
    taken_NE = jnp.sum(jax.nn.one_hot(chosen_EC, N), axis=1).T
    return routing.Routing(p_NE * taken_NE, None, {}, dict(router_entropy=routing.entropy(p_NE, real_N)), carry)
