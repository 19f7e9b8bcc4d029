"""p-MoD: routed layers that keep fewer tokens the deeper they are, and start as the dense ones.

    w_t = 1 + 0.2 tanh(x_t . v),  v = 0 at the start        TanhNorm: w = 1 in a fresh model
    out_t = x_t + attn_t + w_t mlp_t  of the K largest w;  else  w_t x_t         symmetric reweighting
    K / T = cos(pi l / (L - 1)) / 2 + mean, at least 0.15; above 0.85 the layer stays dense

so that with nothing skipped a fresh layer is the dense one. The paper routes vision tokens only; here all tokens of
a row compete.

Reference: Zhang et al., "p-MoD: Building Mixture-of-Depths MLLMs via Progressive Ratio Decay", 2024. Departure:
kept tokens are numbered anew (layers/depth/token_selection.py).
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from layers.dense import Dense
from layers.depth import token_selection
from layers.norms.tanh_norm import keep_ratio, tanh_norm


class PMoD(nn.Module):
  """One routed layer, around the layer that it wraps.

  Attributes:
    block: factory of the layer, given by the stack.
    layer, depth: which of how many, given by the stack.
    mean_ratio: share of tokens kept, on average over depth but for the limits.
    dense: above this share a layer is not routed.
    least: the smallest share.
    decay: whether the share falls with depth; False keeps `mean_ratio` everywhere.
    alpha: how far from 1 a weight can get.
    predictor_weight: of the loss of the predictor that decides in decoding.
  """

  block: Callable[..., nn.Module] | None = None
  layer: int = 0
  depth: int = 1
  mean_ratio: float = 0.5
  dense: float = 0.85
  least: float = 0.15
  decay: bool = True
  alpha: float = 0.2
  predictor_weight: float = 0.01

  causal = False

  def ratio_at(self, layer: int, depth: int) -> float | None:
    """Returns the share of tokens that a layer sees, None where it is not routed."""
    if not self.decay:
      return self.mean_ratio
    ratio = keep_ratio(layer, depth, self.mean_ratio, self.dense, self.least)
    return None if ratio == 1.0 else ratio

  @nn.compact
  def __call__(self, x_BTD, context, state, in_scale, alpha, segment_ids=None):
    block = self.block(name="block")
    run = lambda x_BTD, state, ids_BT, gain_BT: block(x_BTD, context, state, in_scale, alpha, ids_BT, gain_BT)
    router = Dense(1, use_bias=False, dtype=jnp.float32, kernel_init=nn.initializers.zeros, name="router")
    w_BT = tanh_norm(router(x_BTD.astype(jnp.float32))[..., 0], self.alpha)
    return token_selection.route(
        self, run, x_BTD, context, state, segment_ids, scores_BT=w_BT, ratio=self.ratio_at(self.layer, self.depth),
        predictor_weight=self.predictor_weight, gain_BT=w_BT, skip_BT=w_BT)
