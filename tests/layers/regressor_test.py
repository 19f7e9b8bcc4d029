"""What the regressor reads of its stack, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.in_context import constructions
from layers.in_context.linear_self_attention import LinearSelfAttention
from layers.norms.rms_norm import RMSNorm
from layers.placement import placement
from layers.regressor import Regressor
from layers.stack import Stack
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


N, K, ETA = 6, 5, 0.3
LINEAR = {form: Regressor(K + 1, functools.partial(Stack, (functools.partial(LinearSelfAttention, form=form),), None,
                                                   RMSNorm, placement("none", 1)), read_in="mlp")
          for form in ("four", "gd")}
_answer = jax.jit(lambda params, tokens, form: LINEAR[form].apply({"params": params}, tokens)[0][:, 0],
                  static_argnums=2)


def _sinusoids(seed):
  """Returns (tokens of N pairs and a query, drawn parameters of the MLP, its features in float64)."""
  draw = np.random.default_rng(seed)
  x = draw.uniform(-2, 2, (B, N + 1, 1))
  y = np.sin(x + draw.uniform(0, np.pi, (B, 1, 1)))
  y[:, -1] = 0
  tokens = np.float32(np.concatenate([x, y], 2))
  params = toy.parameters(LINEAR["gd"], seed, tokens)
  dense = lambda x, name: x @ np.float64(params[name]["kernel"]) + params[name]["bias"]
  h = dense(x, "embedding")
  u = dense(h, "embedding_up")
  gelu = 0.5 * u * (1 + np.tanh((2 / np.pi) ** 0.5 * (u + 0.044715 * u**3)))
  return tokens, params, h + dense(gelu, "embedding_down")


def _with(params, mixer):
  return params | {"stack": {"layers_0_to_0": {"block_0": {"mixer": mixer}}}}


@pytest.mark.parametrize("form", ["four", "gd"])
def test_with_the_mlp_fixed_a_constructed_layer_is_one_gradient_step_on_the_head(form):
  tokens, params, phi = _sinusoids(2)
  head = ETA / N * np.einsum("bnk,bn->bk", phi[:, :N], tokens[:, :N, 1])  # from 0, on (1 / 2n) sum (w.phi - y)^2
  want = np.sum(head * phi[:, -1], 1)
  mixer = constructions.kernels(constructions.gradient_step(K, N, ETA)) if form == "four" else dict(eta=np.float32(ETA))
  error = np.abs(_answer(_with(params, mixer), tokens, form) - want).max()
  assert error < 1e-5 * max(1.0, np.abs(want).max())


def test_a_step_on_the_head_is_blind_to_the_order_of_pairs_and_linear_in_y():
  tokens, params, _ = _sinusoids(3)
  params = _with(params, dict(eta=np.float32(ETA)))
  turned = tokens.copy()
  turned[:, :N] = tokens[:, N - 1::-1]
  turned[..., 1] *= -2
  y = _answer(params, tokens, "gd")
  np.testing.assert_allclose(_answer(params, turned, "gd"), -2 * y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields, given, match", [
    (dict(read_in="conv"), {}, "read_in='conv' is unknown; choose from none, dense, mlp"),
    (dict(read_out="mean"), {}, "read_out='mean' is unknown"),
    (dict(width=7), {}, "width=7 must be the 3 numbers of a token"),
    (dict(width=1, read_in="mlp"), {}, "width=1 of 3 numbers in a token: read_in='mlp' needs 2 of both"),
    (dict(), dict(states=()), "takes neither states nor segment_ids"),
])
def test_what_it_cannot_read_is_refused(fields, given, match):
  model = Regressor(stack=_bent, **{"width": F, **fields})
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(functools.partial(model.init, **given), jax.random.key(0), jnp.zeros((B, T, F)))
