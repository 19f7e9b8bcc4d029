"""Running parity: after every bit, whether the ones so far are odd in number.

    y_t = x_1 xor x_2 xor ... xor x_t        x_t in {0, 1}, fair coins

A model without a state that can change sign (a softmax over positions, a
recurrence with decays in [0, 1]) learns it for no length but the one it saw.

Reference: Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through
Negative Eigenvalues", 2024. There the label is the parity of the whole sequence.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from research import losses
from research.tasks import fields
from research.tasks import keys

# Dims: B batch, T tokens.


@dataclasses.dataclass(frozen=True)
class Parity:
  """Parity of the bits so far, at every position.

  Attributes:
    tokens: bits in a sequence.
    batch_size: sequences over all hosts.
    seed: of the data.
  """

  on_device: ClassVar[bool] = True

  tokens: int = 40
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    fields.whole("tokens", self.tokens, 1, 2**24, "it is the length of a sequence in bits")
    fields.batch(self.batch_size, self.seed, self.tokens)

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    draw = lambda key: jax.random.bernoulli(key, shape=(self.tokens,)).astype(jnp.int32)
    bits_BT = jax.vmap(draw)(keys.of_rows(self, split, step, rows))
    return {"inputs": bits_BT, "labels": jnp.cumsum(bits_BT, axis=1) % 2,
            "weights": jnp.ones(bits_BT.shape, jnp.float32)}

  def loss(self, outputs, batch):
    """Cross-entropy and accuracy over all positions of logits [B, T, 2]."""
    args = outputs, batch["labels"], batch["weights"]
    return losses.cross_entropy(*args), {"accuracy": losses.accuracy(*args)}

  def model_fields(self) -> dict[str, int]:
    return {"vocab": 2}

  def fingerprint(self) -> dict:
    return {"dataset": "parity.Parity"} | dataclasses.asdict(self)
