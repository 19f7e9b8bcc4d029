"""Packed rows: several documents in one row, told apart by `segment_ids_BT`.

Equal ids belong together, negative ids are padding, which stands between
documents and never inside one. A state that comes in
belongs to the row's first real segment, the state that goes out to its last
real one; trailing padding leaves that state alone. These few facts are all that
a mixer needs to keep documents apart.
"""

import jax
import jax.numpy as jnp


def real(segment_ids_BT):
  """Returns [B, T], True where a token is no padding; None where there are no segments."""
  return None if segment_ids_BT is None else segment_ids_BT >= 0


def first_segment(segment_ids_BT):
  """Returns [B], the id of each row's first real token (of token 0 if there is none)."""
  first_B1 = jnp.argmax(segment_ids_BT >= 0, axis=1)[:, None]
  return jnp.take_along_axis(segment_ids_BT, first_B1, axis=1)[:, 0]


def tokens_to_last(segment_ids_BT):
  """Returns [B], how many tokens remain when trailing padding is cut off."""
  T = segment_ids_BT.shape[1]
  back_B = jnp.argmax(segment_ids_BT[:, ::-1] >= 0, axis=1)
  return jnp.where(jnp.any(segment_ids_BT >= 0, axis=1), T - back_B, 0)


def window(line_BSF, start_B, length: int):
  """Returns `length` rows of each line from its own start: line[b, start[b] : start[b] + length]."""
  index_BP = start_B[:, None] + jnp.arange(length)[None]
  index_BP = index_BP.reshape(index_BP.shape + (1,) * (line_BSF.ndim - 2))
  return jnp.take_along_axis(line_BSF, index_BP, axis=1)


def positions(segment_ids_BT, seen_B):
  """Returns (position_BT of each token in its segment, tokens of the last segment so far [B]).

  Args:
    segment_ids_BT: the segments.
    seen_B: tokens of the first segment that came before this row.
  """
  T = segment_ids_BT.shape[1]
  index_1T = jnp.arange(T)[None]
  change_BT = jnp.diff(segment_ids_BT, axis=1, prepend=segment_ids_BT[:, :1] - 1) != 0
  start_BT = jax.lax.cummax(jnp.where(change_BT, index_1T, 0), axis=1)
  first_B1 = first_segment(segment_ids_BT)[:, None]
  position_BT = index_1T - start_BT + jnp.where(segment_ids_BT == first_B1, seen_B[:, None], 0)
  count_B1 = tokens_to_last(segment_ids_BT)[:, None]
  last_B1 = jnp.take_along_axis(position_BT, jnp.maximum(count_B1 - 1, 0), axis=1)
  return position_BT, jnp.where(count_B1 > 0, last_B1 + 1, seen_B[:, None])[:, 0]
