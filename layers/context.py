"""What travels from layer to layer beside the residual stream.

A layer whose paper needs more than x (a router with a recurrence over depth,
shared keys and values, sets of active tokens) declares `uses_context = True`
and has the signature `y, context = channel(x, context)`, a mixer
`y, state, context = mixer(x, state, segment_ids, context)`. It finds the index of
its layer in `context.layer` and its own cross-layer state under its own key of
`context.carry`; `init_carry(batch, tokens)` of that layer gives the state
before the first layer, a dict with that one key.

`context.skip` leaves one layer out, for those who ask what it is good for: they
give the index of the layer as variable "layer" of the stack's collection "skip".
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
    skip: index of the layer that passes x and carry on as they came, though its
      mixer's own state moves on; None leaves none out and adds nothing to the program.
  """

  layer: jax.Array
  carry: dict[str, Any]
  skip: jax.Array | None = None


def first(carry: dict[str, Any], skip=None) -> LayerContext:
  """Returns the context that layer 0 sees."""
  return LayerContext(jnp.zeros((), jnp.int32), carry, skip)


def after(x_BTD, context: LayerContext, old_x_BTD, old: LayerContext):
  """Returns (x, context) as the next layer sees them: what a layer made, or what it was given if skipped."""
  if old.skip is not None:
    keep = lambda new, was: jnp.where(old.layer == old.skip, was, new)
    x_BTD, carry = jax.tree.map(keep, (x_BTD, context.carry), (old_x_BTD, old.carry))
    context = context.replace(carry=carry)
  return x_BTD, context.replace(layer=context.layer + 1)
