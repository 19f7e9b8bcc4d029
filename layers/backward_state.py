"""State that a backward pass writes: how a layer keeps statistics of its own gradients.

A backward rule cannot assign a variable. So the layer takes its state as one more
differentiable input, and its rule (jax.custom_vjp) returns the NEW state as the
"cotangent" of that input. Whoever trains differentiates with respect to the
collection "backward_state" as well and calls `advance`. This holds under jit, scan,
remat, vmap and any mesh, for they all carry cotangents.

Cotangents add up: over the places where one module is applied, over microbatches.
Each state therefore has a scalar "uses", of which a backward pass returns 1, and
`advance` takes the mean over uses. What did not run (uses 0) keeps its state.
"""

import jax.numpy as jnp

COLLECTION = "backward_state"
USES = "uses"


def declare(module, **shapes):
  """Returns {name: array} of a module's state, zeros at first; runs inside a compact method.

  Args:
    module: the flax module that owns the state.
    **shapes: name -> shape of the float32 arrays.
  """
  make = lambda name, shape: module.variable(COLLECTION, name, jnp.zeros, shape).value
  return {name: make(name, shape) for name, shape in (shapes | {USES: ()}).items()}


def written(**new):
  """Returns what a backward rule gives as cotangent of the state."""
  return new | {USES: jnp.ones(())}


def advance(state, cotangent):
  """Returns the collection after a step, from the sum of its cotangents."""
  if USES not in state:
    return {name: advance(state[name], cotangent[name]) for name in state}
  def mean(name):
    old, total = state[name], cotangent[name]
    # A scan stacks layers in front: "uses" then has one entry per layer.
    uses = cotangent[USES].reshape(state[USES].shape + (1,) * (old.ndim - state[USES].ndim))
    return jnp.where(uses > 0, total / jnp.maximum(uses, 1), old)
  return {name: state[name] if name == USES else mean(name) for name in state}
