"""Mixture-of-Depths: on every second layer a router lets a few tokens in, and the rest pass by.

    r_t = x_t . w,    out_t = x_t + r_t f(x_kept)_t for the K largest r of the row, else x_t

f is the whole layer without its residual. How tokens are chosen in decoding, and what is not causal, is told in
layers/depth/token_selection.py.

Reference: Raposo et al., "Mixture-of-Depths: Dynamically allocating compute in transformer-based language models",
2024 (with the predictor of its section 3.5; its other way, a loss on the router itself, is not here).
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from layers.dense import Dense
from layers.depth import token_selection


class MixtureOfDepths(nn.Module):
  """One routed layer, around the layer that it wraps.

  Attributes:
    block: factory of the layer, given by the stack.
    layer, depth: which of how many, given by the stack.
    ratio: share of the tokens of a row that the layer sees.
    every: one layer of so many is routed, the last of them.
    predictor_weight: of the loss of the predictor that decides in decoding.
  """

  block: Callable[..., nn.Module] | None = None
  layer: int = 0
  depth: int = 1
  ratio: float = 0.125
  every: int = 2
  predictor_weight: float = 0.01

  causal = False

  def ratio_at(self, layer: int, depth: int) -> float | None:
    """Returns the share of tokens that a layer sees, None where it is not routed."""
    if self.every < 1:
      raise ValueError(f"every={self.every} must be at least 1 layer.")
    return None if (layer + 1) % self.every else self.ratio

  @nn.compact
  def __call__(self, x_BTD, context, state, in_scale, alpha, segment_ids=None):
    block = self.block(name="block")
    run = lambda x_BTD, state, ids_BT, gain_BT: block(x_BTD, context, state, in_scale, alpha, ids_BT, gain_BT)
    router = Dense(1, use_bias=False, dtype=jnp.float32, name="router")
    r_BT = router(x_BTD.astype(jnp.float32))[..., 0]
    return token_selection.route(
        self, run, x_BTD, context, state, segment_ids, scores_BT=r_BT, ratio=self.ratio_at(self.layer, self.depth),
        predictor_weight=self.predictor_weight, update_BT=r_BT)
