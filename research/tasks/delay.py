"""Delay: at every position, say the token that came d steps ago.

    y_t = x_{t-d}        t > d, x_t uniform in {0, ..., V - 1}

The first d positions have no label. A state that solves it holds d log2(V) bits,
so the longest delay that a model learns measures its memory.

Reference: Jaeger, "Short Term Memory in Echo State Networks", 2001. There inputs
are real numbers and the score is a correlation; here they are symbols.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from research import losses
from research.tasks import fields
from research.tasks import keys

# Dims: B batch, T tokens, V vocabulary.


@dataclasses.dataclass(frozen=True)
class Delay:
  """Echo of the token `delay` steps back.

  Attributes:
    vocab: V.
    tokens: T.
    delay: d, in tokens.
    batch_size: sequences over all hosts.
    seed: of the data.
  """

  on_device: ClassVar[bool] = True

  vocab: int = 8
  tokens: int = 64
  delay: int = 8
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    fields.whole("vocab", self.vocab, 2, 2**20, "one symbol would say nothing")
    fields.whole("tokens", self.tokens, 2, 2**24, "it is the length of a sequence")
    fields.whole("delay", self.delay, 1, self.tokens - 1,
                 f"an echo must come within the {self.tokens} tokens")
    fields.batch(self.batch_size, self.seed, max(self.tokens, self.vocab))

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    noise_BT = jax.vmap(lambda key: jax.random.uniform(key, (self.tokens,)))(
        keys.of_rows(self, split, step, rows))
    inputs_BT = (noise_BT * self.vocab).astype(jnp.int32)
    labels_BT = jnp.pad(inputs_BT, ((0, 0), (self.delay, 0)))[:, :self.tokens]
    known_T = (jnp.arange(self.tokens) >= self.delay).astype(jnp.float32)
    return {"inputs": inputs_BT, "labels": labels_BT,
            "weights": jnp.broadcast_to(known_T, labels_BT.shape)}

  def loss(self, outputs, batch):
    """Cross-entropy and accuracy over the echoes of logits [B, T, V]."""
    args = outputs, batch["labels"], batch["weights"]
    return losses.cross_entropy(*args), {"accuracy": losses.accuracy(*args)}

  def model_fields(self) -> dict[str, int]:
    return {"vocab": self.vocab}

  def fingerprint(self) -> dict:
    return {"dataset": "delay.Delay"} | dataclasses.asdict(self)
