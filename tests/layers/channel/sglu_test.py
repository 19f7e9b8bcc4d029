"""SGLU against its equation in float64, its degree, and its limit as a GLU."""

import jax
import numpy as np

from layers.channel.glu import GLU
from layers.channel.sglu import SGLU
from tests.layers import toy

LAYER = SGLU(hidden=7)
run = jax.jit(LAYER.apply)


def _case(seed):
  x = np.random.default_rng(seed).standard_normal((2, 3, 5), np.float32)
  return x, toy.parameters(LAYER, seed + 1, x)


def _rel(got, want):
  return np.linalg.norm(got - want) / np.linalg.norm(want)


def test_it_is_the_product_of_two_maps():
  x, params = _case(0)
  gate, up, down = (np.asarray(params[name]["kernel"], np.float64) for name in ("gate", "up", "down"))
  assert _rel(run({"params": params}, x), ((x @ gate) * (x @ up)) @ down) < 3e-6


def test_a_factor_comes_out_squared():
  x, params = _case(2)
  np.testing.assert_allclose(run({"params": params}, -2 * x), 4 * run({"params": params}, x), rtol=1e-5, atol=1e-5)


def test_it_is_a_glu_that_does_not_bend():
  x, params = _case(4)
  want = jax.jit(GLU(hidden=7, activation="identity").apply)({"params": params}, x)
  np.testing.assert_array_equal(run({"params": params}, x), want)


def test_it_takes_the_width_of_a_glu():
  width = lambda layer: jax.eval_shape(layer.init, jax.random.key(0), np.zeros((1, 1, 64)))["params"]["up"]["kernel"].shape
  assert width(SGLU()) == width(GLU()) == (64, 168)
