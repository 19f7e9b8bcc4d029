"""What attention remembers of past tokens: the last M of some arrays, and which sources a token may see.

A cache holds arrays [B, M, ...] by name, `live_BM` (which slots hold a token of the running segment)
and `seen_B` (tokens of that segment so far). Dead slots are zero, so that equal histories leave equal
states.

Several runs of one mixer over the same row may read the same sources. To a mixer whose class says
`shares_sources = True` the first run gives `Open(cache)` as state, and gets `Sources` back. A later run gives
those, with mask and places of its own readers; the mixer makes queries only and returns them as they came.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from layers import segments

# Dims: B batch, T new tokens, M cached tokens, S sources.


class Open(NamedTuple):
  """In place of a cache: what the row reads is asked for, and not only the cache after it.

  Attributes:
    cache: the cache before the row; None where nothing lies before it.
  """

  cache: dict[str, jax.Array] | None


class Sources(NamedTuple):
  """What the tokens of a row read.

  Attributes:
    arrays: name -> [B, S, ...].
    mask_BTS: True where token t may read source s.
    position_BT: place of each of those tokens in its segment.
    cache: the cache for the tokens that follow the row.
  """

  arrays: dict[str, jax.Array]
  mask_BTS: jax.Array
  position_BT: jax.Array
  cache: dict[str, jax.Array]


def empty(batch: int, slots: int, shapes: dict[str, tuple[int, ...]], dtype):
  """Returns a cache without tokens, of arrays [batch, slots, *shape]."""
  arrays = {name: jnp.zeros((batch, slots, *shape), dtype) for name, shape in shapes.items()}
  return dict(arrays, live_BM=jnp.zeros((batch, slots), bool), seen_B=jnp.zeros(batch, jnp.int32))


def visible(position_BT, position_BS, ids_BT, ids_BS, *, causal=True, window=0):
  """Returns the mask [B, T, S]: True where token t may read source s.

  Args:
    position_BT, position_BS: place of each reader and each source in its row.
    ids_BT, ids_BS: only equal, non-negative segment ids see each other.
    causal: a source later than its reader is hidden.
    window: sources `window` or more tokens away are hidden; 0 hides none.
  """
  away_BTS = position_BT[:, :, None] - position_BS[:, None, :]
  mask_BTS = (ids_BT[:, :, None] == ids_BS[:, None, :]) & (ids_BS[:, None, :] >= 0)
  if causal:
    mask_BTS &= away_BTS >= 0
  if window:
    mask_BTS &= jnp.abs(away_BTS) < window
  return mask_BTS


def extend(cache, new, ids_BT, position_BT, now_B, *, first: bool, causal=True, window=0) -> Sources:
  """Appends new tokens to the cache.

  Args:
    cache: the cache before them.
    new: name -> [B, T, ...].
    ids_BT: segment ids, negative for padding.
    position_BT, now_B: as segments.positions gives them for cache["seen_B"].
    first: nothing lies before the row, so the empty slots are left out of the sources.
    causal, window: as `visible` takes them.
  """
  M, B = cache["live_BM"].shape[1], ids_BT.shape[0]
  # In a row of padding alone no segment goes on, and what is live stays so.
  old_BM = jnp.where(cache["live_BM"], jnp.maximum(segments.first_segment(ids_BT), 0)[:, None], -1)
  line = {name: jnp.concatenate([cache[name], array], axis=1) for name, array in new.items()}
  ids_BS = jnp.concatenate([old_BM, ids_BT], axis=1)
  before_BM = cache["seen_B"][:, None] + jnp.arange(-M, 0)[None]
  position_BS = jnp.concatenate([jnp.broadcast_to(before_BM, (B, M)), position_BT], axis=1)

  count_B = segments.tokens_to_last(ids_BT)
  last_B1 = jnp.take_along_axis(ids_BS, M - 1 + count_B[:, None], axis=1)
  kept_BM = segments.window(ids_BS, count_B, M)
  live_BM = (kept_BM == last_B1) & (kept_BM >= 0)
  def keep(line):
    alive = live_BM.reshape(live_BM.shape + (1,) * (line.ndim - 2))
    return jnp.where(alive, segments.window(line, count_B, M), 0)
  cache = dict({name: keep(array) for name, array in line.items()}, live_BM=live_BM, seen_B=now_B)

  if first:
    line, ids_BS, position_BS = new, ids_BT, position_BT
  mask_BTS = visible(position_BT, position_BS, ids_BT, ids_BS, causal=causal, window=window)
  return Sources(line, mask_BTS, position_BT, cache)
