"""Selective copying: say in order the data that stood at random places in noise.

    . . b . a . . . c .  | | |        T tokens in all, the last n are markers
                         b a c        labels, nowhere else

Token 0 (.) is noise, 1 (|) the marker, and data are uniform in 2 .. V - 1, with
repeats. The n places of the data are a uniform subset of the first T - n. With
`scattered=False` the data are the first n tokens: the plain copying task, which a
recurrence solves by counting, without looking at what it reads.

Reference: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State
Spaces", 2023, sections 3.1 and 4.1.1.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from research import losses
from research.tasks import fields
from research.tasks import keys

# Dims: B batch, T tokens, N data tokens, V vocabulary.

NOISE, MARKER, DATA = 0, 1, 2


def example(key, *, vocab: int, tokens: int, items: int, scattered: bool):
  """One sequence: inputs, labels and weights, each [T]."""
  # One call for all the noise: each call costs a second of compilation on a CPU.
  of_data, of_places = jnp.split(jax.random.uniform(key, (tokens,)), [items])
  data_N = DATA + (of_data * (vocab - DATA)).astype(jnp.int32)
  place_N = jnp.arange(items)
  if scattered:
    # The places of the n largest of i.i.d. numbers are a uniform subset.
    place_N = jnp.sort(jax.lax.top_k(of_places, items)[1])
  end = slice(tokens - items, tokens)
  inputs_T = jnp.full(tokens, NOISE, jnp.int32).at[place_N].set(data_N).at[end].set(MARKER)
  labels_T = jnp.zeros(tokens, jnp.int32).at[end].set(data_N)
  return inputs_T, labels_T, jnp.zeros(tokens, jnp.float32).at[end].set(1.0)


@dataclasses.dataclass(frozen=True)
class SelectiveCopy:
  """Copying of `items` data tokens out of `tokens` tokens.

  Attributes:
    vocab: V, with the noise and the marker.
    tokens: T, markers included.
    items: n.
    scattered: whether the data stand at random places or all at the start.
    batch_size: sequences over all hosts.
    seed: of the data.
  """

  on_device: ClassVar[bool] = True

  vocab: int = 16
  tokens: int = 64
  items: int = 8
  scattered: bool = True
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    fields.whole("tokens", self.tokens, 2, 2**24, "it is the length of a sequence with its markers")
    fields.whole("items", self.items, 1, self.tokens // 2,
                 f"each takes 2 of the {self.tokens} tokens: itself and its marker")
    fields.whole("vocab", self.vocab, 4, 2**20, "it holds noise, marker and two data tokens")
    fields.one_of("scattered", self.scattered, (False, True))
    fields.batch(self.batch_size, self.seed, max(self.tokens, self.vocab))

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    one = functools.partial(example, vocab=self.vocab, tokens=self.tokens, items=self.items,
                            scattered=self.scattered)
    row_keys_B = keys.of_rows(self, split, step, rows)
    return dict(zip(("inputs", "labels", "weights"), jax.vmap(one)(row_keys_B)))

  def loss(self, outputs, batch):
    """Cross-entropy and accuracy over the markers of logits [B, T, V]."""
    args = outputs, batch["labels"], batch["weights"]
    return losses.cross_entropy(*args), {"accuracy": losses.accuracy(*args)}

  def model_fields(self) -> dict[str, int]:
    return {"vocab": self.vocab}

  def fingerprint(self) -> dict:
    return {"dataset": "selective_copy.SelectiveCopy"} | dataclasses.asdict(self)
