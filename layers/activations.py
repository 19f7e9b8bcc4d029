"""The pointwise nonlinearities that channel mixers know by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def squared_relu(x):
  """max(x, 0)^2, after So et al., "Primer", 2021."""
  return jnp.square(nn.relu(x))


ACTIVATIONS = {
    "gelu": nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "identity": lambda x: x,
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "squared_relu": squared_relu,
    "tanh": jnp.tanh,
}


def activation(name: str):
  """Returns the function called `name`.

  Raises:
    ValueError: unknown name.
  """
  if name not in ACTIVATIONS:
    raise ValueError(f"activation={name!r} is unknown; choose from {', '.join(ACTIVATIONS)}.")
  return ACTIVATIONS[name]
