"""Multi-query associative recall: say the value of every key when it is seen again.

    k_1 v_1 k_2 v_2 ... k_n v_n   filler   k_3 filler   k_1 ...

The first 2n tokens are n pairs of distinct keys (1 .. V/2 - 1) and distinct
values (V/2 .. V - 1). Each key comes back once, at position 2n + 2 gap, with gaps
drawn without replacement in proportion to (gap + 1)^(power - 1). The label there
is its value; nothing else has a label. Filler is any token of the vocabulary, keys
and values included.

With `rebind` the sequence begins with 2n pairs: every key is bound twice, to
distinct values and in random order, and the latest value counts. A memory
that only adds keeps both.

Reference: Arora et al., "Zoology: Measuring and Improving Recall in Efficient
Language Models", 2023, appendix on MQAR.
"""

import dataclasses
import functools
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp

from research import losses
from research.tasks import fields
from research.tasks import keys

# Dims: B batch, T tokens, N keys, P pairs, R pairs of one key, V vocabulary, G gaps.


def draw(noise, log_p, n: int):
  """n of the indices of `log_p` without replacement, in the order of the draw.

  Args:
    noise: uniform in (0, 1), of the shape of log_p.
    log_p: log probabilities, up to a constant.
    n: how many.
  """
  # The n largest of log p + Gumbel noise are exactly that.
  return jax.lax.top_k(log_p - jnp.log(-jnp.log(noise)), n)[1]


def example(key, *, vocab: int, tokens: int, pairs: int, power: float, rebind: bool):
  """One sequence: inputs, labels and weights, each [T]."""
  written = 2 * pairs if rebind else pairs
  half, gaps = vocab // 2, (tokens - 2 * written) // 2
  # One call for all the noise: each call costs a second of compilation on a CPU.
  ends = list(itertools.accumulate((half - 1, vocab - half, gaps, tokens, written * rebind)))
  noise = jax.random.uniform(key, (ends[-1],), minval=jnp.finfo(jnp.float32).tiny)
  of_keys, of_values, of_gaps, of_filler, of_places = jnp.split(noise, ends[:-1])

  key_N = 1 + draw(of_keys, jnp.zeros(half - 1), pairs)
  value_P = half + draw(of_values, jnp.zeros(vocab - half), written)
  log_p_G = (power - 1.0) * jnp.log1p(jnp.arange(gaps, dtype=jnp.float32))
  query_N = 2 * written + 2 * draw(of_gaps, log_p_G, pairs)

  place_RN = jnp.arange(pairs)[None]
  if rebind:
    place_RN = draw(of_places, jnp.zeros(written), written).reshape(2, pairs)
  bound_P = jnp.zeros(written, jnp.int32).at[place_RN].set(jnp.broadcast_to(key_N, place_RN.shape))
  latest_N = value_P[jnp.max(place_RN, axis=0)]

  filler_T = (of_filler * vocab).astype(jnp.int32)
  pairs_T = jnp.stack([bound_P, value_P], axis=1).reshape(-1)
  inputs_T = filler_T.at[:2 * written].set(pairs_T).at[query_N].set(key_N)
  labels_T = jnp.zeros(tokens, jnp.int32).at[query_N].set(latest_N)
  return inputs_T, labels_T, jnp.zeros(tokens, jnp.float32).at[query_N].set(1.0)


@dataclasses.dataclass(frozen=True)
class MultiQueryRecall:
  """Recall of `pairs` bindings within `tokens` tokens.

  Attributes:
    vocab: V; half are keys, half are values.
    tokens: T, at least 4 tokens a key, 6 with `rebind`.
    pairs: n.
    power: small values put most queries soon after the pairs; 1 spreads them.
    rebind: whether every key is bound twice and its latest value counts.
    batch_size: sequences over all hosts.
    seed: of the data.
  """

  on_device: ClassVar[bool] = True

  vocab: int = 256
  tokens: int = 64
  pairs: int = 8
  power: float = 0.01
  rebind: bool = False
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    fields.one_of("rebind", self.rebind, (False, True))
    room, what = (6, "two keys, two values") if self.rebind else (4, "key, value")
    fields.whole("tokens", self.tokens, room, 2**24, "it is the length of a sequence")
    fields.whole("pairs", self.pairs, 1, self.tokens // room,
                 f"a pair takes {room} of the {self.tokens} tokens: {what}, and room for its query")
    fields.whole("vocab", self.vocab, 4 * self.pairs if self.rebind else 2 * self.pairs + 2, 2**20,
                 f"half of it must hold {2 * self.pairs} values" if self.rebind else
                 f"half of it without 0 must hold {self.pairs} keys")
    fields.real("power", self.power, 0.0, 100.0, "it shapes how soon a key is asked for")
    fields.batch(self.batch_size, self.seed, max(self.tokens, self.vocab))

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    one = functools.partial(example, vocab=self.vocab, tokens=self.tokens, pairs=self.pairs,
                            power=self.power, rebind=self.rebind)
    row_keys_B = keys.of_rows(self, split, step, rows)
    return dict(zip(("inputs", "labels", "weights"), jax.vmap(one)(row_keys_B)))

  def loss(self, outputs, batch):
    """Cross-entropy and accuracy over the queries of logits [B, T, V]."""
    args = outputs, batch["labels"], batch["weights"]
    return losses.cross_entropy(*args), {"accuracy": losses.accuracy(*args)}

  def model_fields(self) -> dict[str, int]:
    return {"vocab": self.vocab}

  def fingerprint(self) -> dict:
    said = {"dataset": "recall.MultiQueryRecall"} | dataclasses.asdict(self)
    # Absent when off, as in runs saved before the field existed: their data is the same.
    return {name: value for name, value in said.items() if name != "rebind" or value}
