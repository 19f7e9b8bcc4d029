"""The language model: token embedding, residual stack, head."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers.dense import Dense
from layers.positions import LearnedPositions


class LM(nn.Module):
  """Next-token logits for every token of a row.

  Attributes:
    vocab: number of tokens.
    width: D, of the residual stream.
    stack: factory of the residual stack.
    tied: whether the head is the transposed embedding.
    max_positions: rows of learned positions; 0 where the mixers order tokens themselves.
    embedding_std: standard deviation of the initial embedding.
    head_bias: whether a head of its own has a bias.
    dtype: dtype of the residual stream; logits are float32.
  """

  vocab: int
  width: int
  stack: Callable[..., nn.Module]
  tied: bool = False
  max_positions: int = 0
  embedding_std: float = 0.02
  head_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  reads = ("head",)  # layers/stream_map.py

  @property
  def writes(self) -> tuple[str, ...]:
    """The modules that write to the residual stream."""
    return ("embedding", "positions") if self.max_positions else ("embedding",)

  def init_state(self, batch: int):
    """Returns the state before the first token: {"seen_B", "stack"}."""
    return dict(seen_B=jnp.zeros(batch, jnp.int32),
                stack=self.stack(parent=None).init_state(batch))

  @nn.compact
  def __call__(self, tokens_BT, states=None, segment_ids=None):
    """Returns (logits_BTV in float32, states); no states come back where none went in."""
    embed = nn.Embed(self.vocab, self.width, dtype=self.dtype, name="embedding",
                     embedding_init=nn.initializers.normal(self.embedding_std))
    x_BTD = embed(tokens_BT)
    seen_B, stack_states = (None, None) if states is None else (states["seen_B"], states["stack"])
    if self.max_positions:
      positions = LearnedPositions(self.max_positions, self.embedding_std, name="positions")
      x_BTD, seen_B = positions(x_BTD, seen_B, segment_ids)
    x_BTD, stack_states = self.stack(name="stack")(x_BTD, stack_states, segment_ids)
    # Products in `dtype`, sums in float32: a logit of 25 in bfloat16 is off by up to 0.06.
    if self.tied:
      logits_BTV = jax.lax.dot_general(x_BTD, embed.embedding.astype(self.dtype), (((2,), (1,)), ((), ())),
                                       preferred_element_type=jnp.float32)
    else:
      logits_BTV = Dense(self.vocab, use_bias=self.head_bias, dtype=self.dtype, out_dtype=jnp.float32,
                         name="head")(x_BTD)
    states = None if states is None else dict(seen_B=seen_B, stack=stack_states)
    return logits_BTV, states
