"""The mixer against its equations in float64, in attention form, and its gates at the start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers.mamba2 import Mamba2
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V = 4, 3, 4


@functools.cache
def _layer(conv, groups=1):
  """Returns (layer, jitted apply)."""
  layer = Mamba2(heads=H, groups=groups, key_dim=K, value_dim=V, conv=conv)
  return layer, jax.jit(layer.apply)


def _streams(p, x, state):
  """Returns (x, B, C with their groups repeated, step, past inputs)."""
  line, past = np.concatenate([x @ p[name]["kernel"] for name in ("value", "key", "query")], -1), {}
  if "conv" in p:
    line, past["conv"] = by_hand.convolve(line, p["conv"]["filter"], state["conv"])
    line = line + p["conv_bias"]
  line = by_hand.silu(line)
  groups = p["key"]["kernel"].shape[1] // K
  cut = H * V, H * V + groups * K
  share = lambda part: np.repeat(by_hand.heads(part, groups), H // groups, axis=2)
  step = by_hand.softplus(x @ p["decay"]["kernel"] + p["decay"]["bias"])
  return (by_hand.heads(line[..., :cut[0]], H), share(line[..., cut[0]:cut[1]]), share(line[..., cut[1]:]),
          step, past)


def _out(p, x, y):
  y = y.reshape(*x.shape[:2], -1) * by_hand.silu(x @ p["gate"]["kernel"])
  return by_hand.rms(y, p["norm"]["scale"], 1e-5) @ p["out"]["kernel"]


@pytest.mark.parametrize("conv, groups", [(3, 1), (0, 2)])
def test_the_mixer_is_the_equations_of_its_docstring(conv, groups):
  layer, run = _layer(conv, groups)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  p, wide = by_hand.wide(params["params"]), by_hand.wide(state)
  u, b, c, step, past = _streams(p, x, wide)
  y, S = by_hand.recurrence(
      c, b, step[..., None] * u, wide["S_BHKV"], -np.exp(p["A_log"]) * step, scale=1.0)
  want = _out(p, x, y + p["D"][:, None] * u), past | {"S_BHKV": S}
  assert by_hand.error(run(params, x, state), want) < 1e-5


def test_it_is_attention_with_a_mask_of_decays():
  layer, run = _layer(0)
  x = by_hand.tokens(3)
  params = {"params": toy.parameters(layer, 4, x)}
  p = by_hand.wide(params["params"])
  u, b, c, step, _ = _streams(p, x, {})
  G = np.moveaxis(np.cumsum(-np.exp(p["A_log"]) * step, axis=1), 1, 2)
  mask = np.tril(np.exp(np.minimum(G[..., :, None] - G[..., None, :], 0)))
  score = mask * np.einsum("bthk,bshk->bhts", c, b)
  y = np.einsum("bhts,bshv->bthv", score, step[..., None] * u) + p["D"][:, None] * u
  assert by_hand.error(run(params, x)[0], _out(p, x, y)) < 1e-5


def test_a_rate_of_zero_and_steps_of_one_are_plain_linear_attention():
  layer, run = _layer(0)
  x, state = by_hand.tokens(5), by_hand.state(layer, 6)
  params = toy.parameters(layer, 7, x)
  one = np.log(np.expm1(np.ones(H, np.float32)))
  params |= dict(A_log=np.full(H, -40, np.float32), D=0 * params["D"],
                 decay=dict(kernel=0 * params["decay"]["kernel"], bias=one))
  p, wide = by_hand.wide(params), by_hand.wide(state)
  u, b, c, _, _ = _streams(p, x, wide)
  y, S = by_hand.recurrence(c, b, u, wide["S_BHKV"], scale=1.0)
  assert by_hand.error(run({"params": params}, x, state), (_out(p, x, y), {"S_BHKV": S})) < 1e-5


def test_rates_steps_and_skips_start_as_in_the_paper():
  layer = Mamba2(heads=400, key_dim=2, value_dim=1, conv=0)
  params = jax.jit(layer.init)(jax.random.key(0), np.zeros((1, 1, 2), np.float32))["params"]
  rate, step = np.exp(params["A_log"]), np.log1p(np.exp(params["decay"]["bias"], dtype=np.float64))
  assert 0.999 < rate.min() < 2 and 15 < rate.max() < 16.001
  assert 0.99e-3 < step.min() < 1.2e-3 and 0.08 < step.max() < 0.101
  assert np.all(params["D"] == 1)


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_do_not_divide_the_heads_are_refused(groups):
  layer = Mamba2(heads=4, groups=groups)
  with pytest.raises(ValueError, match=f"groups={groups} must be at least 1 and divide heads=4"):
    jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 2, 3)))
