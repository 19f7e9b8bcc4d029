"""The mixer against its equations in float64, in parallel form, and its rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import retention
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V = 3, 6, 4
LAYER = retention.Retention(heads=H, key_dim=K, value_dim=V, rope_theta=50.0)

run = jax.jit(LAYER.apply)


def _rotated(x, first):
  """Turns pair (i, i + K/2) as a complex number by 50^(-i / (K/2 - 1)) per token."""
  position = np.asarray(first)[:, None] + np.arange(x.shape[1])
  angle = position[..., None] * 50.0 ** -np.linspace(0, 1, K // 2)
  z = (x[..., :K // 2] + 1j * x[..., K // 2:]) * np.exp(1j * angle)[:, :, None]
  return np.concatenate([z.real, z.imag], -1)


def _parts(p, x, first):
  q, k, v = (np.einsum("btd,dhk->bthk", x, p[name]["kernel"]) for name in ("query", "key", "value"))
  return _rotated(q, first), _rotated(k, first), v


def _out(p, x, y):
  y = by_hand.rms(y, 1.0, 1e-6).reshape(*x.shape[:2], -1)
  return (y * by_hand.silu(x @ p["gate"]["kernel"])) @ p["out"]["kernel"]


def test_the_mixer_is_the_equations_of_its_docstring():
  x, first = by_hand.tokens(0), np.array([3, 11], np.int32)
  params = {"params": toy.parameters(LAYER, 1, x)}
  state = dict(S_BHKV=by_hand.state(LAYER, 2)["S_BHKV"], seen_B=first)
  p = by_hand.wide(params["params"])
  log_g = np.broadcast_to(np.log(1 - 2.0 ** -(5.0 + np.arange(H))), (*x.shape[:2], H))
  y, S = by_hand.recurrence(*_parts(p, x, first), state["S_BHKV"].astype(np.float64), log_g)
  want = _out(p, x, y), dict(S_BHKV=S, seen_B=first + x.shape[1])
  assert by_hand.error(run(params, x, state), want) < 1e-5


def test_the_parallel_form_of_the_paper_is_the_same():
  x, zero = by_hand.tokens(3), np.zeros(2, np.int32)
  params = {"params": toy.parameters(LAYER, 4, x)}
  p = by_hand.wide(params["params"])
  q, k, v = _parts(p, x, zero)
  back = np.subtract.outer(np.arange(9), np.arange(9))
  decay = np.where(back >= 0, (1 - 2.0 ** -(5.0 + np.arange(H)))[:, None, None] ** np.maximum(back, 0), 0)
  score = np.einsum("bthk,bshk->bhts", q, k) * K**-0.5 * decay
  # The paper divides rows of decays by their root of sums; the norm takes it out again, up to eps.
  score /= np.sqrt(decay.sum(-1, keepdims=True))
  want = _out(p, x, np.einsum("bhts,bshv->bthv", score, v))
  assert by_hand.error(run(params, x)[0], want) < 1e-4


def test_an_offset_of_all_positions_changes_nothing():
  x = by_hand.tokens(5)
  params = {"params": toy.parameters(LAYER, 6, x)}
  empty = LAYER.init_state(2)
  late = run(params, x, dict(empty, seen_B=empty["seen_B"] + 40))
  assert by_hand.error(late[0], run(params, x, empty)[0]) < 1e-4


def test_the_rates_are_those_of_the_paper_and_never_reach_one():
  np.testing.assert_allclose(np.exp(retention.log_decays(3)), [31 / 32, 63 / 64, 127 / 128], rtol=1e-6)
  assert np.all(retention.log_decays(64) < 0)


def test_an_odd_key_width_is_refused():
  layer = retention.Retention(key_dim=5)
  with pytest.raises(ValueError, match="head_dim=5 must be even"):
    jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 2, 3)))
