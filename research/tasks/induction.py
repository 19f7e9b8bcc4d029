"""Induction: when the trigger comes back, say what followed it the first time.

    x_1 ... x_{p-1}  trigger  a  ...  x_{T-1}  trigger
                                                  a      the only label

Token 0 is the trigger; it stands at a place p uniform in 1 .. T - 2 and at the
end, nowhere else. All others are uniform in 1 .. V - 1, so the label is too.

Reference: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State
Spaces", 2023, section 4.1.2; the mechanism is that of Olsson et al., "In-context
Learning and Induction Heads", 2022.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from research import losses
from research.tasks import fields
from research.tasks import keys

# Dims: B batch, T tokens, V vocabulary.

TRIGGER = 0


def example(key, *, vocab: int, tokens: int):
  """One sequence: inputs, labels and weights, each [T]."""
  # One call for all the noise: each call costs a second of compilation on a CPU.
  noise = jax.random.uniform(key, (tokens + 1,))
  place = (noise[-1] * (tokens - 2)).astype(jnp.int32)
  other_T = 1 + TRIGGER + (noise[:-1] * (vocab - 1)).astype(jnp.int32)
  inputs_T = other_T.at[place].set(TRIGGER).at[-1].set(TRIGGER)
  labels_T = jnp.zeros(tokens, jnp.int32).at[-1].set(inputs_T[place + 1])
  return inputs_T, labels_T, jnp.zeros(tokens, jnp.float32).at[-1].set(1.0)


@dataclasses.dataclass(frozen=True)
class Induction:
  """One look-up of what followed the trigger, at the last position.

  Attributes:
    vocab: V, with the trigger.
    tokens: T, both triggers included.
    batch_size: sequences over all hosts.
    seed: of the data.
  """

  on_device: ClassVar[bool] = True

  vocab: int = 16
  tokens: int = 64
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    fields.whole("vocab", self.vocab, 3, 2**20, "it holds the trigger and two others")
    fields.whole("tokens", self.tokens, 3, 2**24, "two are triggers and one lies between")
    fields.batch(self.batch_size, self.seed, max(self.tokens, self.vocab))

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    one = functools.partial(example, vocab=self.vocab, tokens=self.tokens)
    row_keys_B = keys.of_rows(self, split, step, rows)
    return dict(zip(("inputs", "labels", "weights"), jax.vmap(one)(row_keys_B)))

  def loss(self, outputs, batch):
    """Cross-entropy and accuracy over the last position of logits [B, T, V]."""
    args = outputs, batch["labels"], batch["weights"]
    return losses.cross_entropy(*args), {"accuracy": losses.accuracy(*args)}

  def model_fields(self) -> dict[str, int]:
    return {"vocab": self.vocab}

  def fingerprint(self) -> dict:
    return {"dataset": "induction.Induction"} | dataclasses.asdict(self)
