"""Word problem of a group: after every permutation, the product of all so far.

    y_t = x_t o y_{t-1}        y_0 = identity        (a o b)(i) = a(b(i))

Tokens and labels are elements of the group of all permutations of n things,
numbered in the order of their rows, the identity first. Uniform tokens
make every y_t uniform, whatever came before. `moves="swaps"` leaves only the
n - 1 exchanges of neighbours: then the sign of y_t alternates with t, and chance
is two elements in n!.

The groups of 3 and of 4 things are solvable, that of 5 is not: its word problem
is complete for NC1, out of reach of a fixed number of parallel layers.

Reference: Merrill, Petty and Sabharwal, "The Illusion of State in State-Space
Models", 2024, section 5.
"""

import dataclasses
import functools
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from research import losses
from research.tasks import fields
from research.tasks import keys

# Dims: B batch, T tokens, G elements of the group, M moves.

THINGS = {"S3": 3, "S4": 4, "S5": 5}


@functools.cache
def elements(things: int):
  """All permutations of `things` things, one in a row, in the order of their rows."""
  return np.array(list(itertools.permutations(range(things))))


@functools.cache
def cayley(things: int):
  """Table [G, G] of the group: its entry [a, b] is the number of a after b."""
  rows = elements(things)
  place = things ** np.arange(things)
  number = np.zeros(things**things, np.int32)
  number[rows @ place] = np.arange(len(rows))
  return number[rows[:, rows] @ place]


@functools.cache
def swaps(things: int):
  """Numbers of the elements that exchange two neighbours."""
  moved = elements(things) != np.arange(things)
  return np.flatnonzero((moved.sum(axis=1) == 2) & np.any(moved[:, 1:] & moved[:, :-1], axis=1))


def products(table_GG, tokens_BT):
  """Products so far of the elements of each row, the latest on the left."""
  after = lambda before, late: table_GG[late, before]
  return jax.lax.associative_scan(after, tokens_BT, axis=1)


@dataclasses.dataclass(frozen=True)
class Permutations:
  """Product of the permutations so far, at every position.

  Attributes:
    group: S3, S4 or S5, all permutations of 3, 4 or 5 things.
    moves: "all" elements are tokens, or only the "swaps" of neighbours.
    tokens: permutations in a sequence.
    batch_size: sequences over all hosts.
    seed: of the data.
  """

  on_device: ClassVar[bool] = True

  group: str = "S3"
  moves: str = "all"
  tokens: int = 24
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    fields.one_of("group", self.group, tuple(THINGS))
    fields.one_of("moves", self.moves, ("all", "swaps"))
    fields.whole("tokens", self.tokens, 1, 2**24, "it is the length of a sequence")
    fields.batch(self.batch_size, self.seed, max(self.tokens, len(elements(THINGS[self.group]))))

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    things = THINGS[self.group]
    table_GG = cayley(things)
    move_M = np.arange(len(table_GG)) if self.moves == "all" else swaps(things)
    noise_BT = jax.vmap(lambda key: jax.random.uniform(key, (self.tokens,)))(
        keys.of_rows(self, split, step, rows))
    drawn_BT = (noise_BT * len(move_M)).astype(jnp.int32)
    inputs_BT = jnp.asarray(move_M, jnp.int32)[drawn_BT]
    return {"inputs": inputs_BT, "labels": products(jnp.asarray(table_GG), inputs_BT),
            "weights": jnp.ones(inputs_BT.shape, jnp.float32)}

  def loss(self, outputs, batch):
    """Cross-entropy and accuracy over all positions of logits [B, T, G]."""
    args = outputs, batch["labels"], batch["weights"]
    return losses.cross_entropy(*args), {"accuracy": losses.accuracy(*args)}

  def model_fields(self) -> dict[str, int]:
    return {"vocab": len(elements(THINGS[self.group]))}

  def fingerprint(self) -> dict:
    return {"dataset": "permutations.Permutations"} | dataclasses.asdict(self)
