"""Many small linear self-attention layers trained side by side, as one compiled program without a host loop.

Learning rate, noise, input range and steps of warmup are arrays: a sweep over them, or over seeds, is a longer first
axis and not another compilation. What the engine's loop does besides (checkpoints, metrics, resume) is not here;
experiments use the engine, this is for tables, notebooks and sweeps of toy models.

    adam on E (f - w.x_q)^2 / 2, gradients clipped by their global norm

Reference: von Oswald et al., "Transformers learn in-context by gradient descent", 2023, Appendix (the protocol).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from layers.in_context import prompts
from layers.in_context.linear_self_attention import LinearSelfAttention

# Dims: M models, S steps, B batch, D token width.


class Settings(NamedTuple):
  """What may differ from model to model; numbers, or arrays with one entry per model.

  Attributes:
    seed: of start and data.
    lr: peak learning rate; it falls to 0 as half a cosine.
    scale: factor on x; the input range of uniform coordinates.
    noise: variance of what is added to y.
    clip: largest global norm of a gradient.
  """

  seed: jax.Array
  lr: jax.Array = 3e-3
  scale: jax.Array = 1.0
  noise: jax.Array = 0.0
  clip: jax.Array = 1.0


class Trained(NamedTuple):
  """Parameters and half the mean squared error of every step, both with the axis of models first."""

  params: dict
  loss_MS: np.ndarray


def answers(layer: LinearSelfAttention, params, tokens_BTD):
  """Returns the predictions of one layer with its residual connection: minus the last entry of the last token."""
  y_BTD, _ = layer.apply({"params": params}, tokens_BTD)
  return -(tokens_BTD + y_BTD)[:, -1, -1]


def train(layer: LinearSelfAttention, settings: Settings, *, d: int, n: int, steps: int, batch: int = 512,
          coordinates: str = "normal") -> Trained:
  """Trains one model per entry of the settings.

  Args:
    layer: the mixer, of any form that reads prompts whole.
    settings: see there; entries that are single numbers hold for all models.
    d, n: inputs and pairs.
    steps: of every model.
    batch: prompts in a step.
    coordinates: "normal" or "uniform" inputs.

  Raises:
    ValueError: sizes below 1, a negative noise, or settings of different lengths.
  """
  if min(d, n, steps, batch) < 1:
    raise ValueError(f"d={d}, n={n}, steps={steps} and batch={batch} must all be at least 1.")
  arrays = [np.atleast_1d(np.asarray(value)) for value in settings]
  models = max(map(len, arrays))
  for name, array in zip(Settings._fields, arrays):
    if array.ndim != 1 or len(array) not in (1, models):
      raise ValueError(f"{name} of shape {array.shape} must be a number or have one entry for each of {models} models.")
    if name != "seed" and (np.any(array < 0) or not np.all(np.isfinite(array))):
      raise ValueError(f"{name}={array.min():g} must be finite and at least 0.")
  full = Settings(*(jnp.asarray(np.broadcast_to(array, models), jnp.int32 if name == "seed" else jnp.float32)
                    for name, array in zip(Settings._fields, arrays)))
  params, loss_MS = _all(full, layer=layer, d=d, n=n, steps=steps, batch=batch, coordinates=coordinates)
  return Trained(params, np.asarray(loss_MS))


@functools.partial(jax.jit, static_argnames=("layer", "d", "n", "steps", "batch", "coordinates"))
def _all(settings, *, layer, d, n, steps, batch, coordinates):
  rule = optax.scale_by_adam(b1=0.9, b2=0.98)

  def one(own):
    law = prompts.law(d, scale=own.scale, noise=own.noise)
    key_start, key_data = jax.random.split(jax.random.key(own.seed))

    def loss(params, key):
      drawn = prompts.draw(jax.random.split(key, batch), law, n=n, coordinates=coordinates)
      return 0.5 * jnp.mean((answers(layer, params, prompts.concatenated(drawn)) - drawn.target_B) ** 2)

    def step(carry, index):
      params, moments = carry
      value, grads = jax.value_and_grad(loss)(params, jax.random.fold_in(key_data, index))
      factor = jnp.minimum(1.0, own.clip / jnp.maximum(optax.tree.norm(grads), 1e-30))
      updates, moments = rule.update(jax.tree.map(lambda g: g * factor, grads), moments)
      rate = own.lr * 0.5 * (1 + jnp.cos(jnp.pi * index / steps))
      return (jax.tree.map(lambda p, u: p - rate * u, params, updates), moments), value

    params = layer.init(key_start, jnp.zeros((1, n + 1, d + 1)))["params"]
    (params, _), loss_S = jax.lax.scan(step, (params, rule.init(params)), jnp.arange(steps))
    return params, loss_S

  return jax.vmap(one)(settings)
