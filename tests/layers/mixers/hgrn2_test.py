"""The mixer against its equations in float64, and its lower bound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import hgrn2
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V = 2, 3, 4


@functools.cache
def _layer(**fields):
  """Returns (layer, jitted apply)."""
  layer = hgrn2.HGRN2(heads=H, key_dim=K, value_dim=V, **fields)
  return layer, jax.jit(layer.apply)


def _by_hand(layer, params, x, state):
  p, state, past, parts = by_hand.wide(params["params"]), by_hand.wide(state), {}, []
  identity = lambda y: y
  for name, f in (("query", by_hand.silu), ("forget", identity),
                  ("value", by_hand.silu if layer.conv else identity)):
    part, final = by_hand.project(p, name, x, state, H, f)
    parts, past = parts + [part], past | final
  a = layer.lower_bound + (1 - layer.lower_bound) * by_hand.sigmoid(parts[1])
  y, S = by_hand.recurrence(parts[0], 1 - a, parts[2], state["S_BHKV"], np.log(a))
  y = by_hand.rms(y.reshape(*x.shape[:2], -1), p["norm"]["scale"], 1e-5)
  return y @ p["out"]["kernel"], past | {"S_BHKV": S}


@pytest.mark.parametrize("fields", [dict(), dict(conv=3, lower_bound=0.4)], ids=["plain", "options"])
def test_the_mixer_is_the_equations_of_its_docstring(fields):
  layer, run = _layer(**fields)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  assert by_hand.error(run(params, x, state), _by_hand(layer, params, x, state)) < 1e-5


def test_the_state_is_a_mean_of_values_and_never_leaves_their_range():
  layer, run = _layer()
  x = by_hand.tokens(3)
  params = toy.parameters(layer, 4, x)
  v = x @ params["value"]["kernel"]
  largest = np.abs(by_hand.heads(v, H)).max((0, 1)).max()
  assert np.abs(run({"params": params}, x)[1]["S_BHKV"]).max() <= largest + 1e-5


@pytest.mark.parametrize("bound", [0.0, 0.25, 0.999])
def test_no_gate_forgets_more_than_its_lower_bound(bound):
  z = np.array([-80.0, -20.0, -1.0, 0.0, 1.0, 80.0], np.float32)
  log_a = jax.jit(hgrn2.log_forget, static_argnums=1)(z, bound)
  want = bound + (1 - bound) * by_hand.sigmoid(z.astype(np.float64))
  np.testing.assert_allclose(np.exp(log_a, dtype=np.float64), want, rtol=1e-5)
  slope = jax.jit(jax.vmap(jax.grad(lambda z: hgrn2.log_forget(z, bound))))(z)
  assert np.all(np.isfinite(slope)) and np.all(np.asarray(slope) >= 0)


@pytest.mark.parametrize("bound", [-0.1, 1.0])
def test_a_bound_that_is_no_share_is_refused(bound):
  with pytest.raises(ValueError, match=rf"lower_bound={bound} must lie in \[0, 1\)"):
    jax.eval_shape(hgrn2.HGRN2(lower_bound=bound).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
