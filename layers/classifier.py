"""The sequence classifier: a linear embedding of feature vectors, stack, mean, head."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from layers.dense import Dense
from layers.positions import LearnedPositions


class Classifier(nn.Module):
  """One vector of class logits for a sequence of feature vectors (pixels, patches).

  Attributes:
    classes: number of classes.
    width: D, of the residual stream.
    stack: factory of the residual stack.
    max_positions: rows of learned positions; 0 where the mixers order tokens themselves.
    embedding_std: standard deviation of the initial position vectors.
    dtype: dtype of the residual stream; logits are float32.
  """

  classes: int
  width: int
  stack: Callable[..., nn.Module]
  max_positions: int = 0
  embedding_std: float = 0.02
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BTF, states=None, segment_ids=None):
    """Returns (logits [B, classes] in float32, None): a class is of the whole sequence.

    Raises:
      ValueError: states or segment_ids are given; a part of a row has no class.
    """
    if states is not None or segment_ids is not None:
      raise ValueError("a classifier reads one whole sequence per row; "
                       "it takes neither states nor segment_ids.")
    x_BTD = Dense(self.width, dtype=self.dtype, name="embedding")(x_BTF)
    if self.max_positions:
      x_BTD, _ = LearnedPositions(
          self.max_positions, self.embedding_std, name="positions")(x_BTD)
    x_BTD, _ = self.stack(name="stack")(x_BTD)
    x_BD = jnp.mean(x_BTD.astype(jnp.float32), axis=1)
    return Dense(self.classes, name="head")(x_BD), None
