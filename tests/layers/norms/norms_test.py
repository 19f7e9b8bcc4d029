"""LayerNorm and RMSNorm against float64: values, gradients, invariances, bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.norms.layer_norm import LayerNorm, layer_norm
from layers.norms.rms_norm import RMSNorm, rms_norm

EPS = 1e-6
NAMES = ("layer", "rms")


def _by_hand(name, x, scale=1.0, bias=0.0, eps=EPS):
  x = np.asarray(x, np.float64)
  if name == "layer":
    return scale * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) + bias
  return scale * x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)


@functools.partial(jax.jit, static_argnums=0)
def _norm(name, x, scale, bias):
  return layer_norm(x, scale, bias, EPS) if name == "layer" else rms_norm(x, scale, EPS)


def _bent(y, weight):
  """A sum whose gradient differs at every place."""
  xp = np if isinstance(y, np.ndarray) else jnp
  return xp.sum(weight * xp.sin(y))


_grads = jax.jit(jax.grad(
    lambda args, name, weight: _bent(_norm(name, *args), weight)), static_argnums=1)


def _inputs(seed, B=3, D=8):
  draw = np.random.default_rng(seed)
  x, weight = draw.standard_normal((2, B, D), np.float32)
  scale, bias = draw.standard_normal((2, D), np.float32)
  return 3 * x + 1, scale, bias, weight


def _rel(got, want):
  return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_is_its_equation(name):
  x, scale, bias, _ = _inputs(0)
  # Small inputs too: there eps is most of the denominator.
  for size in (1.0, 1e-3):
    assert _rel(_norm(name, size * x, scale, bias), _by_hand(name, size * x, scale, bias)) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_finite_differences_of_the_equation(name):
  x, scale, bias, weight = _inputs(1)
  got = _grads((x, scale, bias), name, weight)
  args = [np.asarray(a, np.float64) for a in (x, scale, bias)]
  for i, g in enumerate(got):
    want = np.zeros(args[i].shape)
    for place in np.ndindex(want.shape):
      shift = np.zeros(want.shape)
      shift[place] = 1e-5
      up, down = ([*args[:i], args[i] + sign * shift, *args[i + 1:]] for sign in (1, -1))
      want[place] = (_bent(_by_hand(name, *up), weight) - _bent(_by_hand(name, *down), weight)) / 2e-5
    if name == "rms" and i == 2:
      assert np.all(np.asarray(g) == 0)  # it has no bias
    else:
      assert _rel(g, want) < 1e-5, i


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e-1, 1e3, 1e15])
def test_a_norm_does_not_see_the_scale_of_its_input(name, size):
  x, scale, bias, _ = _inputs(2)
  x *= 100  # far above eps
  assert _rel(_norm(name, np.float32(size) * x, scale, bias), _by_hand(name, x, scale, bias, 0)) < 3e-6


def test_layer_norm_does_not_see_a_shift_and_rms_norm_does():
  x, scale, bias, _ = _inputs(3)
  assert _rel(_norm("layer", x + 7, scale, bias), _by_hand("layer", x, scale, bias)) < 3e-6
  assert _rel(_norm("rms", x + 7, scale, bias), _by_hand("rms", x, scale)) > 0.1


def test_layer_norm_is_rms_norm_of_centred_features():
  x, scale, _, _ = _inputs(4)
  centred = (x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)).astype(np.float32)
  got = _norm("layer", x, scale, np.zeros_like(scale))
  assert _rel(got, _by_hand("rms", centred, scale)) < 1e-6


def test_layer_norm_stays_accurate_beside_a_large_mean():
  x, scale, bias, _ = _inputs(5, D=64)
  x += np.float32(1e4)
  # The inputs themselves are rounded to 1e-3 here; mean(x^2) - mean(x)^2 would be off by 10.
  assert _rel(_norm("layer", x, scale, bias), _by_hand("layer", x, scale, bias)) < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_the_float64_norm_rounded_once(name):
  x, _, _, _ = _inputs(6, D=1024)
  ones, zeros = np.ones(1024, np.float32), np.zeros(1024, np.float32)
  x = np.asarray(x + 20, jnp.bfloat16)
  got = _norm(name, x, ones, zeros)
  want = _by_hand(name, x)
  assert got.dtype == jnp.bfloat16
  # Half a unit in the last of 8 places; the float32 statistics add 1e-4 of cancellation.
  np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-8, atol=2e-4)


@pytest.mark.parametrize("module, fields, want", [
    (LayerNorm, {}, {"scale": 1.0, "bias": 0.0}),
    (LayerNorm, dict(bias=False), {"scale": 1.0}),
    (LayerNorm, dict(gain=False), {"bias": 0.0}),
    (RMSNorm, {}, {"scale": 1.0}),
    (RMSNorm, dict(gain=False), {}),
])
def test_a_module_starts_as_the_bare_norm_with_the_parameters_it_names(module, fields, want):
  x = _inputs(7)[0]
  params = jax.jit(module(**fields).init)(jax.random.key(0), x)
  assert {k: np.unique(v).tolist() for k, v in params.get("params", {}).items()} == {
      k: [v] for k, v in want.items()}
  name = "layer" if module is LayerNorm else "rms"
  assert _rel(jax.jit(module(**fields).apply)(params, x), _by_hand(name, x)) < 1e-6
