"""gamma-MoD: layers whose attention has low rank are routed, by the probability that a token is kept.

    p_t = softmax(RMSNorm(x_t) W)_1,  W [D, 2]
    out_t = x_t + attn_t + p_t mlp_t of the K largest p;  else x_t
    loss = 0.01 cross entropy(logits_t, whether t was kept)        which is also what decides in decoding: p > 1/2

    ARank of a layer = mean over heads and rows of the rank of its attention matrix below the diagonal

A layer with a low ARank is redundant and is routed; the published code routes all but the first three and the last.
Reference: Luo et al., "gamma-MoD: Exploring Mixture-of-Depth Adaptation for Multimodal Large Language Models",
2024. Departures: one router for each layer instead of one for all (a scan over layers gives each its own), all
tokens of a row compete (the paper forces those of questions and answers in).
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers.dense import Dense
from layers.depth import token_selection
from layers.norms.rms_norm import RMSNorm

# Dims: B batch, T tokens, H heads, D model width.


def a_rank(attention_BHTT, tolerance: float | None = None):
  """Returns the mean rank of the strict lower triangles of attention matrices, float32.

  Args:
    attention_BHTT: probabilities of a causal layer.
    tolerance: singular values at most this count as 0; None is the largest one times T times the machine's eps.
  """
  below_BHTT = jnp.tril(attention_BHTT.astype(jnp.float32), k=-1)
  s_BHT = jnp.linalg.svd(below_BHTT, compute_uv=False)
  T = s_BHT.shape[-1]
  least = s_BHT[..., :1] * T * jnp.finfo(jnp.float32).eps if tolerance is None else tolerance
  return jnp.mean(jnp.sum(s_BHT > least, axis=-1).astype(jnp.float32))


class GammaMoD(nn.Module):
  """One routed layer, around the layer that it wraps.

  Attributes:
    block: factory of the layer, given by the stack.
    layer, depth: which of how many, given by the stack.
    ratio: share of the tokens of a row that the layer sees.
    dense_first, dense_last: layers at both ends that are not routed.
    router_weight: of the router's cross entropy.
  """

  block: Callable[..., nn.Module] | None = None
  layer: int = 0
  depth: int = 1
  ratio: float = 0.5
  dense_first: int = 3
  dense_last: int = 1
  router_weight: float = 0.01

  causal = False

  def ratio_at(self, layer: int, depth: int) -> float | None:
    """Returns the share of tokens that a layer sees, None where it is not routed."""
    return self.ratio if self.dense_first <= layer < depth - self.dense_last else None

  @nn.compact
  def __call__(self, x_BTD, context, state, in_scale, alpha, segment_ids=None):
    block = self.block(name="block")
    run = lambda x_BTD, state, ids_BT, gain_BT: block(x_BTD, context, state, in_scale, alpha, ids_BT, gain_BT)
    normed_BTD = RMSNorm(name="router_norm")(x_BTD.astype(jnp.float32))
    logits_BT2 = Dense(2, use_bias=False, dtype=jnp.float32, name="router")(normed_BTD)
    p_BT = jax.nn.softmax(logits_BT2)[..., 1]
    return token_selection.route(
        self, run, x_BTD, context, state, segment_ids, scores_BT=p_BT, ratio=self.ratio_at(self.layer, self.depth),
        predictor_weight=self.router_weight, gain_BT=p_BT, logits_BT=logits_BT2[..., 1] - logits_BT2[..., 0])
