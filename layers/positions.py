"""Learned positions: one vector per place in the document, added to its embedding.

For mixers that do not tell positions apart by themselves. Each packed segment
starts at position 0 again; a row that continues another starts where that ended.
"""

import flax.linen as nn
import jax.numpy as jnp

from layers import segments


class LearnedPositions(nn.Module):
  """The table of position vectors, normal with standard deviation `std` at first.

  Attributes:
    max_positions: rows of the table; a longer row is refused.
    std: of the initial vectors.
  """

  max_positions: int
  std: float = 0.02

  @nn.compact
  def __call__(self, x_BTD, seen_B=None, segment_ids=None):
    """Returns (x_BTD plus the position vectors, tokens of the running segment so far [B])."""
    B, T, D = x_BTD.shape
    if T > self.max_positions:
      raise ValueError(f"max_positions={self.max_positions} must cover the row of {T} tokens.")
    table_PD = self.param("embedding", nn.initializers.normal(self.std), (self.max_positions, D))
    seen_B = jnp.zeros(B, jnp.int32) if seen_B is None else seen_B
    if segment_ids is None:
      segment_ids = jnp.zeros((B, T), jnp.int32)
    position_BT, seen_B = segments.positions(segment_ids, seen_B)
    return x_BTD + table_PD[position_BT].astype(x_BTD.dtype), seen_B
