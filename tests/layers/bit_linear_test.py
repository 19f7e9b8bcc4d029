"""Ternary maps against float64, their exact sums, and their straight-through gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import bit_linear
from layers.channel.ternary_glu import TernaryGLU
from tests.layers import toy
from tests.layers.mixers import by_hand

D, F = 7, 5
LAYERS = {ternary: bit_linear.BitLinear(F, ternary) for ternary in (True, False)}
RUN = {ternary: jax.jit(layer.apply) for ternary, layer in LAYERS.items()}

product = jax.jit(bit_linear.bit_product)
weights = jax.jit(bit_linear.quantize_weights)
activations = jax.jit(bit_linear.quantize_activations)


@jax.jit
def _gradients(x, w, dy):
  return jax.grad(lambda x, w: jnp.sum(bit_linear.bit_product(x, w) * dy), argnums=(0, 1))(x, w)


def _draw(seed):
  draw = np.random.default_rng(seed)
  return draw.standard_normal((2, 3, D), np.float32), draw.standard_normal((D, F), np.float32)


def test_the_layer_is_the_equations_of_its_docstring():
  x = by_hand.tokens(0, D=D)
  params = {"params": toy.parameters(LAYERS[True], 1, x)}
  p = by_hand.wide(params["params"])
  assert by_hand.error(RUN[True](params, x), by_hand.bit_linear(p, x.astype(np.float64))) < 1e-6
  assert by_hand.error(RUN[False](params, x), by_hand.bit_linear(p, x.astype(np.float64), ternary=False)) < 1e-6


def test_weights_have_exactly_three_levels():
  levels, scale = weights(np.random.default_rng(2).standard_normal((40, 50), np.float32))
  assert set(np.unique(levels)) == {-1.0, 0.0, 1.0} and scale > 0


def test_halves_are_rounded_to_even_whole_numbers():
  x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -127]], np.float32)
  whole, step = activations(x)
  np.testing.assert_array_equal(whole, [[127, 0, 2, 2, 0, -2, -127]])
  assert step == 1


def test_activations_are_at_most_half_a_step_away():
  x, _ = _draw(3)
  whole, step = activations(x)
  assert np.all(np.abs(whole * step - x) <= 0.5001 * step) and np.abs(whole).max() == 127


def test_sums_over_whole_numbers_are_exact():
  draw = np.random.default_rng(4)
  x = draw.integers(-127, 128, (1, 3, 512)).astype(np.float32)
  x[..., 0] = 127  # so that a step is 1
  w = draw.integers(0, 2, (512, F)) * 2.0 - 1  # so that the scale is 1
  np.testing.assert_array_equal(product(x, w.astype(np.float32)), x.astype(np.int64) @ w.astype(np.int64))


def test_the_gradient_takes_rounding_for_the_identity():
  x, w = _draw(5)
  dy = np.random.default_rng(6).standard_normal((2, 3, F), np.float32)
  (whole, step), (sign, scale) = activations(x), weights(w)
  dx, dw = _gradients(x, w, dy)
  np.testing.assert_allclose(dx, dy @ (np.asarray(sign) * scale).T, rtol=2e-5, atol=1e-6)
  np.testing.assert_allclose(dw, np.einsum("btd,btf->df", whole * step, dy), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("ternary", [True, False])
def test_the_channel_mixer_is_a_glu_of_ternary_maps(ternary):
  layer = TernaryGLU(hidden=6, ternary=ternary)
  x = by_hand.tokens(7)
  params = toy.parameters(layer, 8, x)
  p = by_hand.wide(params)
  gate, up = (by_hand.bit_linear(p[n], x.astype(np.float64), ternary) for n in ("gate", "up"))
  want = by_hand.bit_linear(p["down"], by_hand.silu(gate) * up, ternary)
  assert by_hand.error(jax.jit(layer.apply)({"params": params}, x), want) < 1e-5
