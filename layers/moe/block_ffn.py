"""BlockFFN's router: ReLU chooses a variable number of experts, and losses make neighbours choose alike.

    a = x W        o = relu(a) / sqrt(mean_e relu(a)^2 + eps)        gates = o w, w = 1 at first, one per expert

    chunk = 1 - mean over chunks and experts of prod_{t in chunk} (1 - p_te + 1e-5), p = o / (sum_e o + 1e-5)
    locality = mean BCE(sigmoid(100 a_{t-1}), sigmoid(100 a_t))

Everything is differentiable, and any expert with a positive score is used. `sparsity` is the share
of zero gates per token, `chunk_sparsity` of experts that 8 tokens in a row leave alone.

Departures: the experts are gated linear units as everywhere here; the paper raises and lowers the
chunk loss by a schedule, here its weight is fixed; rows are taken as one document each.

Reference: Song et al., "BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with
Chunk-Level Activation Sparsity", 2025, sections 3.1 and 3.2.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import routing
from layers.moe import losses
from layers.norms.rms_norm import rms_norm

# Dims: N tokens, D model width, E experts.

EPS = 1e-6


class BlockFFN(nn.Module):
  """The router.

  Attributes:
    experts: E.
    chunk: tokens of a chunk in the loss.
    chunk_weight, locality_weight: of the losses.
    tokens: per row of the batch; 0 takes all as one row.
  """

  experts: int = 16
  chunk: int = 64
  chunk_weight: float = 0.05
  locality_weight: float = 1e-3
  tokens: int = 0

  per_row = True

  @nn.compact
  def __call__(self, x_ND, carry=None, real_N=None):
    if self.chunk < 1:
      raise ValueError(f"chunk={self.chunk} must be at least 1 token.")
    T = self.tokens or x_ND.shape[0]
    logits_NE = routing.linear(self.experts, "logits")(x_ND.astype(jnp.float32))
    scale_E = self.param("scale", nn.initializers.ones, (self.experts,))
    o_NE = rms_norm(jax.nn.relu(logits_NE), eps=EPS)
    p_NE = o_NE / (jnp.sum(o_NE, axis=-1, keepdims=True) + 1e-5)
    found = dict(chunk=losses.chunk_touch(p_NE, T, min(self.chunk, T), real_N),
                 locality=losses.locality(logits_NE, T, real_N=real_N))
    live_NE = (o_NE > 0).astype(jnp.float32)
    # With certain use in place of a probability the same expression counts the experts that are touched.
    stats = dict(sparsity=1 - jnp.mean(routing.mean(live_NE, real_N)),
                 chunk_sparsity=1 - losses.chunk_touch(live_NE, T, min(8, T), real_N),
                 router_entropy=routing.entropy(p_NE, real_N))
    return routing.Routing(o_NE * scale_E[None], None, found, jax.lax.stop_gradient(stats), carry)
