"""What travels from layer to layer beside the residual stream.

A layer whose paper needs more than x (a router with a recurrence over depth,
shared keys and values, sets of active tokens) declares `uses_context = True`
and has the signature `y, context = channel(x, context)`, a mixer
`y, state, context = mixer(x, state, segment_ids, context)`. It finds the index of
its layer in `context.layer` and its own cross-layer state under its own key of
`context.carry`; `init_carry(batch, tokens)` of that layer gives the state
before the first layer, a dict with that one key.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class LayerContext:
  """Threaded by the stack through every layer, scanned or not.

  Attributes:
    layer: index from 0 of the layer that reads it, int32 scalar.
    carry: cross-layer state by name; its structure is the same after every layer.
  """

  layer: jax.Array
  carry: dict[str, Any]


def first(carry: dict[str, Any]) -> LayerContext:
  """Returns the context that layer 0 sees."""
  return LayerContext(jnp.zeros((), jnp.int32), carry)
