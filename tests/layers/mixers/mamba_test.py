"""The mixer against its equations in float64, its limits, and its start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import mamba
from tests.layers import toy
from tests.layers.mixers import by_hand

F, N, R = 4, 3, 2

scan = jax.jit(mamba.selective_scan, static_argnames="negative_eigenvalues")


@functools.cache
def _layer(**fields):
  """Returns (layer, jitted apply)."""
  layer = mamba.Mamba(channels=F, states=N, step_rank=R, **fields)
  return layer, jax.jit(layer.apply)


def _by_hand(layer, params, x, state):
  p, state, final = by_hand.wide(params["params"]), by_hand.wide(state), {}
  u = x @ p["value"]["kernel"]
  if layer.conv:
    u, final["conv"] = by_hand.convolve(u, p["conv"]["filter"], state["conv"])
    u = u + p["conv_bias"]
  u = by_hand.silu(u)
  d = by_hand.softplus(u @ p["step_in"]["kernel"] @ p["step_out"]["kernel"] + p["step_out"]["bias"])
  a = np.exp(-d[..., None] * np.exp(p["A_log"]))
  a = 2 * a - 1 if layer.negative_eigenvalues else a
  h, last = by_hand.scan(a, (d * u)[..., None] * (u @ p["key"]["kernel"])[:, :, None], state["h_BFN"])
  y = np.einsum("btfn,btn->btf", h, u @ p["query"]["kernel"]) + p["D"] * u
  return y * by_hand.silu(x @ p["gate"]["kernel"]) @ p["out"]["kernel"], final | {"h_BFN": last}


@pytest.mark.parametrize("fields", [
    dict(conv=3), dict(conv=0, negative_eigenvalues=True)], ids=["conv", "options"])
def test_the_mixer_is_the_equations_of_its_docstring(fields):
  layer, run = _layer(**fields)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  assert by_hand.error(run(params, x, state), _by_hand(layer, params, x, state)) < 1e-5


def _streams(seed):
  draw = np.random.default_rng(seed)
  u, b, c = (draw.standard_normal((2, 9, n), np.float32) for n in (F, N, N))
  return u, draw.uniform(0.1, 1, (2, 9, F)).astype(np.float32), b, c


def test_one_rate_and_one_step_for_all_channels_is_linear_attention_with_a_scalar_decay():
  u, d, b, c = _streams(3)
  d = np.repeat(d[..., :1], F, axis=-1)
  S = np.random.default_rng(4).standard_normal((2, F, N), np.float32)
  y, last = scan(u, d, np.full((F, N), 0.7, np.float32), b, c, S)
  wide = [z.astype(np.float64)[:, :, None] for z in (c, b, d * u)]
  want, S = by_hand.recurrence(*wide, np.swapaxes(S, 1, 2)[:, None], -0.7 * d[..., :1], scale=1.0)
  assert by_hand.error((y, last), (want[:, :, 0], np.swapaxes(S[:, 0], 1, 2))) < 3e-6


def test_a_token_with_no_step_changes_nothing_and_one_with_a_long_step_forgets_all():
  u, d, b, c = _streams(5)
  S = np.random.default_rng(6).standard_normal((2, F, N), np.float32)
  A = np.ones((F, N), np.float32)
  _, kept = scan(u, 0 * d, A, b, c, S)
  np.testing.assert_array_equal(kept, S)
  d[:, 4] = 200.0
  np.testing.assert_array_equal(scan(u, d, A, b, c, S)[0][:, 4:], scan(u, d, A, b, c, 0 * S)[0][:, 4:])


def test_signed_decays_reach_down_to_minus_one():
  u, d, b, c = _streams(7)
  S = np.ones((2, F, N), np.float32)
  A = np.ones((F, N), np.float32)
  _, turned = scan(0 * u[:, :1], 0 * d[:, :1] + 200, A, b[:, :1], c[:, :1], S, negative_eigenvalues=True)
  np.testing.assert_array_equal(turned, -S)


def test_rates_steps_and_skips_start_as_in_the_paper():
  layer = mamba.Mamba(channels=400, states=4)
  params = jax.jit(layer.init)(jax.random.key(0), np.zeros((1, 1, 33), np.float32))["params"]
  np.testing.assert_allclose(np.exp(params["A_log"]), np.repeat([[1, 2, 3, 4]], 400, 0), rtol=1e-6)
  step = np.log1p(np.exp(params["step_out"]["bias"], dtype=np.float64))
  assert 0.99e-3 < step.min() < 1.2e-3 and 0.08 < step.max() < 0.101
  kernel = params["step_out"]["kernel"]
  assert kernel.shape == (3, 400) and 0.55 < np.abs(kernel).max() < 3**-0.5  # 33 / 16 rounds up to 3
  assert np.all(params["D"] == 1)


@pytest.mark.parametrize("fields", [dict(channels=0), dict(states=0), dict(step_rank=-1)])
def test_sizes_that_leave_no_state_are_refused(fields):
  layer = mamba.Mamba(**fields)
  with pytest.raises(ValueError, match=f"channels={layer.channels} and states={layer.states} must .*"
                                       f"step_rank={layer.step_rank}"):
    jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 2, 3)))


def test_slopes_of_the_decay_are_those_of_an_exponential():
  draw = np.random.default_rng(11)
  d, A = draw.uniform(0, 2, (2, 5, F)).astype(np.float32), draw.uniform(0.1, 9, (F, N)).astype(np.float32)
  d[0, 1], weight = 40, draw.standard_normal((2, 5, F, N)).astype(np.float32)
  slopes = lambda decay: jax.jit(jax.grad(lambda d, A: jnp.sum(weight * decay(d, A)), argnums=(0, 1)))(d, A)
  for mine, own in zip(slopes(mamba.decay), slopes(lambda d, A: jnp.exp(-d[..., None] * A[None, None]))):
    np.testing.assert_allclose(mine, own, rtol=2e-5, atol=2e-6)
