"""Trains a norm by hand: one step with a known cotangent, every piece of state written back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from layers import backward_state, clock

STATES = ("batch_stats", backward_state.COLLECTION, clock.COLLECTION)


@functools.partial(jax.jit, static_argnums=0)
def step(module, variables, x, weight, t, mask=None):
  """Returns (y, (gradient of parameters, of x), new variables) for the loss sum(weight y) at step t >= 0."""
  state = {k: v for k, v in variables.items() if k != "params"}
  if clock.COLLECTION in state:
    state[clock.COLLECTION] = clock.set_to(state[clock.COLLECTION], t)
  own = {k: state[k] for k in state if k == backward_state.COLLECTION}

  def loss(params, x, own):
    y, changed = module.apply({"params": params, **state, **own}, x, mask, mutable=list(STATES))
    return jnp.sum(weight * y.astype(jnp.float32)), (y, changed)

  both = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(variables.get("params", {}), x, own)
  (*grads, new_own), (y, changed) = both
  new = {**variables, **changed}
  for name in own:
    new[name] = backward_state.advance(own[name], new_own[name])
  return y, tuple(grads), new


def start(module, x, seed=0, spread=0.3):
  """Returns the first variables, with parameters around their first values so that none is 0 or 1."""
  draw = np.random.default_rng(seed)
  variables = jax.jit(module.init)(jax.random.key(0), x)
  if "params" not in variables:
    return variables
  shift = lambda p: np.asarray(p + spread * draw.standard_normal(p.shape), np.float32)
  return {**variables, "params": jax.tree.map(shift, variables["params"])}


def tokens(seed, *shape, centre=0.5):
  return centre + np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rel(got, want):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape
  return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)


def difference(function, x, weight, shift=1e-5):
  """Returns the gradient of sum(weight function(x)) by central differences, in float64."""
  x, found = np.asarray(x, np.float64), np.zeros(np.shape(x))
  for place in np.ndindex(x.shape):
    e = np.zeros(x.shape)
    e[place] = shift
    found[place] = np.sum(weight * (function(x + e) - function(x - e))) / (2 * shift)
  return found
