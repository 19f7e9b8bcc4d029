"""The regressor: predicts a number for each query of a prompt of pairs (x, y).

    minus_last   - (last coordinate of the last token)     tokens (x_i, y_i), the query (x_q, 0)
    last           last coordinate of the last token       the same, without the sign of a residual
    every_other    Dense(1) of tokens 0, 2, 4, ...          tokens x_1, y_1, x_2, y_2, ...

What is read into the stream of width D:

    none    the token
    dense   Dense(D) of the token
    mlp     (h + V gelu(U h), y) of a token (x, y), h = Dense(D - 1) of x, U to 4 (D - 1) units: features under which a
            function is linear; y goes by it, so that gradient descent on a head of the features can follow

Reference for mlp: von Oswald et al., "Transformers learn in-context by gradient descent", 2023, non-linear regression.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from layers.dense import Dense
from layers.positions import LearnedPositions

# Dims: B batch, T tokens, F numbers of a token, D model, K = D - 1 features of x, P predictions.

READ_IN = ("none", "dense", "mlp")
EXPANSION = 4
READ_OUT = ("minus_last", "last", "every_other")


class Regressor(nn.Module):
  """Predictions of numbers, read from the tokens of a prompt.

  Attributes:
    width: D, of the residual stream.
    stack: factory of the residual stack.
    read_in, read_out: see the file's first lines.
    max_positions: rows of learned positions; 0 where the mixers order tokens themselves, or need no order.
    embedding_std: standard deviation of the initial position vectors.
    dtype: dtype of the residual stream; predictions are float32.
  """

  width: int
  stack: Callable[..., nn.Module]
  read_in: str = "none"
  read_out: str = "minus_last"
  max_positions: int = 0
  embedding_std: float = 0.02
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BTF, states=None, segment_ids=None):
    """Returns (predictions_BP in float32, None): one per prompt, or one per x with "every_other".

    Raises:
      ValueError: an unknown read-in or read-out, a width that the tokens have not, or states and segment_ids,
        which parts of prompts would need.
    """
    for field, known in (("read_in", READ_IN), ("read_out", READ_OUT)):
      if getattr(self, field) not in known:
        raise ValueError(f"{field}={getattr(self, field)!r} is unknown; choose from {', '.join(known)}.")
    if states is not None or segment_ids is not None:
      raise ValueError("a regressor reads one whole prompt per row; it takes neither states nor segment_ids.")
    if self.read_in == "none" and self.width != x_BTF.shape[-1]:
      raise ValueError(f"width={self.width} must be the {x_BTF.shape[-1]} numbers of a token, or read_in='dense'.")
    if self.read_in == "mlp" and min(self.width, x_BTF.shape[-1]) < 2:
      raise ValueError(f"width={self.width} of {x_BTF.shape[-1]} numbers in a token: read_in='mlp' needs 2 of both, "
                       "for x and y.")
    x_BTD = x_BTF.astype(self.dtype)
    if self.read_in == "dense":
      x_BTD = Dense(self.width, dtype=self.dtype, name="embedding")(x_BTF)
    if self.read_in == "mlp":
      x_BTD = jnp.concatenate([self._features(x_BTD[..., :-1]), x_BTD[..., -1:]], axis=-1)
    if self.max_positions:
      x_BTD, _ = LearnedPositions(self.max_positions, self.embedding_std, name="positions")(x_BTD)
    x_BTD, _ = self.stack(name="stack")(x_BTD)
    x_BTD = x_BTD.astype(jnp.float32)
    if self.read_out == "every_other":
      return Dense(1, name="head")(x_BTD[:, ::2])[..., 0], None
    last_B1 = x_BTD[:, -1, -1:]
    return (-last_B1 if self.read_out == "minus_last" else last_B1), None

  def _features(self, x_BTF):
    K = self.width - 1
    dense = lambda width, name: Dense(width, dtype=self.dtype, name=name)
    h_BTK = dense(K, "embedding")(x_BTF)
    return h_BTK + dense(K, "embedding_down")(nn.gelu(dense(EXPANSION * K, "embedding_up")(h_BTK)))
