"""Facts to be known by heart: after a key of two tokens, say the value that belongs to it.

    a_1 b_1 v_1  a_2 b_2 v_2  ...        (a_i, b_i, v_i) = fact r_i of a table, r_i uniform in 0 .. F - 1
        v_1          v_2                 the only labels

The table is drawn once, from the seed: F distinct keys of two tokens in 0 .. V/2 - 1, each with a value uniform in
V/2 .. V - 1. Training and validation ask for the facts of one table, so that what is measured is not what a model
reads in the row but what its parameters hold. A row may ask for a fact twice, which few do where F is large.

Reference: after Allen-Zhu and Li, "Physics of Language Models: Part 3.3, Knowledge Capacity Scaling Laws", 2024,
here with random tokens in the place of biographies.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from research import losses
from research.tasks import fields
from research.tasks import keys

# Dims: B batch, T tokens, N facts in a row, the last one perhaps cut short, F facts in the table.


@functools.cache
def table(facts: int, vocab: int, seed: int):
  """Returns the table [F, 3] of key, key and value tokens, all keys distinct."""
  draw, half = np.random.default_rng(seed), vocab // 2
  key_F = draw.choice(half * half, facts, replace=False)
  return np.stack([key_F // half, key_F % half, draw.integers(half, vocab, facts)], axis=1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Facts:
  """Values of known keys, asked for in random order.

  Attributes:
    facts: F.
    vocab: V; half are tokens of keys, half are values.
    tokens: T; a fact takes three, and the last value of a row need not be in it.
    batch_size: sequences over all hosts.
    seed: of the table and of the order.
  """

  on_device: ClassVar[bool] = True

  facts: int = 4096
  vocab: int = 256
  tokens: int = 23
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    fields.whole("vocab", self.vocab, 2, 2**20, "half of it are tokens of keys and half are values")
    fields.whole("facts", self.facts, 1, min(2**20, (self.vocab // 2)**2),
                 f"{self.vocab // 2} tokens make {(self.vocab // 2)**2} keys of two, and a table may have 1048576 rows")
    fields.whole("tokens", self.tokens, 2, 2**24, "a question takes two")
    fields.batch(self.batch_size, self.seed, max(self.tokens, self.vocab))

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    N = -(-self.tokens // 3)
    noise_BN = jax.vmap(lambda key: jax.random.uniform(key, (N,)))(keys.of_rows(self, split, step, rows))
    table_F3 = jnp.asarray(table(self.facts, self.vocab, self.seed))
    fact_BN3 = table_F3[(noise_BN * self.facts).astype(jnp.int32)]
    asked = lambda value_BN: jnp.stack([jnp.zeros_like(value_BN), value_BN, jnp.zeros_like(value_BN)], axis=-1)
    row = lambda part_BN3: part_BN3.reshape(len(part_BN3), -1)[:, :self.tokens]
    return {"inputs": row(fact_BN3), "labels": row(asked(fact_BN3[..., 2])),
            "weights": row(asked(jnp.ones_like(noise_BN)))}

  def loss(self, outputs, batch):
    """Cross-entropy and accuracy over the values, of logits [B, T, V]."""
    args = outputs, batch["labels"], batch["weights"]
    return losses.cross_entropy(*args), {"accuracy": losses.accuracy(*args)}

  def model_fields(self) -> dict[str, int]:
    return {"vocab": self.vocab}

  def fingerprint(self) -> dict:
    return {"dataset": "facts.Facts"} | dataclasses.asdict(self)
