"""What the regressor reads of its stack, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.regressor import Regressor
from tests.layers import toy

B, T, F, D = 2, 5, 3, 4
_bent = functools.partial(toy.PointwiseStack, function="tanh")


def _tokens(seed):
  return np.random.default_rng(seed).standard_normal((B, T, F), np.float32)


@functools.cache
def _run(**fields):
  model = Regressor(stack=_bent, **{"width": F, **fields})
  params = toy.parameters(model, 0, _tokens(0)) if fields.get("read_in") else {}
  return params, np.asarray(jax.jit(model.apply)({"params": params}, _tokens(1))[0])


def test_the_last_coordinate_of_the_last_token_is_the_prediction():
  y = _run()[1]
  np.testing.assert_allclose(y, -np.tanh(3 * _tokens(1)[:, -1, -1:]), rtol=1e-5)
  np.testing.assert_array_equal(_run(read_out="last")[1], -y)


def test_every_other_token_predicts_through_the_head():
  params, y = _run(width=D, read_in="dense", read_out="every_other", max_positions=T)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  h = _tokens(1) @ p["embedding"]["kernel"] + p["embedding"]["bias"] + p["positions"]["embedding"]
  want = np.tanh(3 * h)[:, ::2] @ p["head"]["kernel"] + p["head"]["bias"]
  assert y.shape == (B, 3)
  np.testing.assert_allclose(y, want[..., 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields, given, match", [
    (dict(read_in="conv"), {}, "read_in='conv' is unknown; choose from none, dense"),
    (dict(read_out="mean"), {}, "read_out='mean' is unknown"),
    (dict(width=7), {}, "width=7 must be the 3 numbers of a token"),
    (dict(), dict(states=()), "takes neither states nor segment_ids"),
])
def test_what_it_cannot_read_is_refused(fields, given, match):
  model = Regressor(stack=_bent, **{"width": F, **fields})
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(functools.partial(model.init, **given), jax.random.key(0), jnp.zeros((B, T, F)))
