"""Running sum modulo m: after every token, the remainder of the sum so far.

    y_t = (x_1 + x_2 + ... + x_t) mod m        x_t uniform in {0, ..., m - 1}

With `counting` tokens are 0 or 1 by fair coins, so the label counts the ones
modulo m; m = 2 is parity. A linear recurrence needs a rotation by 360 / m degrees
for it: eigenvalues off the real line when m > 2, or two reflections in a row.

Reference: Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through
Negative Eigenvalues", 2024, which counts modulo 3. There one label ends the sequence.
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
class ModularSum:
  """Sum modulo `modulus` of the tokens so far, at every position.

  Attributes:
    modulus: m.
    counting: whether tokens are only 0 and 1.
    tokens: numbers in a sequence.
    batch_size: sequences over all hosts.
    seed: of the data.
  """

  on_device: ClassVar[bool] = True

  modulus: int = 3
  counting: bool = False
  tokens: int = 32
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    # Together these limits keep the sum below 2^31.
    fields.whole("modulus", self.modulus, 2, 2**10, "sums are told apart by their remainder")
    fields.one_of("counting", self.counting, (False, True))
    fields.whole("tokens", self.tokens, 1, 2**20, "it is the length of a sequence")
    fields.batch(self.batch_size, self.seed, max(self.tokens, self.modulus))

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    symbols = 2 if self.counting else self.modulus
    noise_BT = jax.vmap(lambda key: jax.random.uniform(key, (self.tokens,)))(
        keys.of_rows(self, split, step, rows))
    inputs_BT = (noise_BT * symbols).astype(jnp.int32)
    return {"inputs": inputs_BT, "labels": jnp.cumsum(inputs_BT, axis=1) % self.modulus,
            "weights": jnp.ones(inputs_BT.shape, jnp.float32)}

  def loss(self, outputs, batch):
    """Cross-entropy and accuracy over all positions of logits [B, T, m]."""
    args = outputs, batch["labels"], batch["weights"]
    return losses.cross_entropy(*args), {"accuracy": losses.accuracy(*args)}

  def model_fields(self) -> dict[str, int]:
    return {"vocab": self.modulus}

  def fingerprint(self) -> dict:
    return {"dataset": "modular.ModularSum"} | dataclasses.asdict(self)
