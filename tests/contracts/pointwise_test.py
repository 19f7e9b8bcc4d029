"""The laws of every norm and channel mixer: each token by itself, dtype kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contracts import tiny

B, T, D = 2, 5, 8
LAYERS = [(kind, name) for kind in ("norm", "channel") for name in tiny.layers(kind)]

pytestmark = pytest.mark.parametrize("kind, name", LAYERS, ids=lambda word: word)


@functools.cache
def _layer(kind, name):
  layer = tiny.build(kind, name)
  params = jax.jit(layer.init)(jax.random.key(0), np.zeros((B, T, D), np.float32))
  return layer, params, jax.jit(layer.apply)


def _tokens(seed):
  return np.random.default_rng(seed).standard_normal((B, T, D), np.float32)


def test_shape_and_dtype_are_those_of_the_input(kind, name):
  layer, params, _ = _layer(kind, name)
  for dtype in (jnp.float32, jnp.bfloat16):
    half = tiny.build(kind, name, dtype=dtype)
    y = jax.eval_shape(half.apply, params, jax.ShapeDtypeStruct((B, T, D), dtype))
    assert (y.shape, y.dtype) == ((B, T, D), dtype)


def test_a_token_sees_only_itself(kind, name):
  layer, params, run = _layer(kind, name)
  if getattr(layer, "mixes_tokens", False):
    pytest.skip("the paper's layer has statistics over tokens")
  x = _tokens(1)
  other = x.copy()
  other[0, 2] += 1.0
  changed = np.any(np.asarray(run(params, x) != run(params, other)), axis=-1)
  assert changed[0, 2] and changed.sum() == 1


def test_constant_and_zero_inputs_are_finite_in_value_and_gradient(kind, name):
  _, params, run = _layer(kind, name)
  both = jax.jit(jax.value_and_grad(lambda p, x: jnp.sum(jnp.sin(run(p, x))), argnums=(0, 1)))
  for fill in (0.0, 1.0, 1e4):
    out = both(params, np.full((B, T, D), fill, np.float32))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))


def test_bfloat16_stays_near_float32(kind, name):
  _, params, run = _layer(kind, name)
  x = _tokens(2)
  half = tiny.build(kind, name, dtype=jnp.bfloat16)
  got = np.asarray(jax.jit(half.apply)(params, x.astype(jnp.bfloat16)), np.float64)
  want = np.asarray(run(params, x), np.float64)
  assert np.linalg.norm(got - want) < 2e-2 * np.linalg.norm(want)
