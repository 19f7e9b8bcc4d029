"""The laws of every token mixer under layers/mixers, whatever its paper.

One compiled function per mixer and length gives outputs, final state and all
gradients; every law below is a comparison of its results.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contracts import tiny

B, D, T, CUT = 2, 6, 10, 5  # both halves are one compiled program
MIXERS = tiny.layers("mixer")
BOUND = 2e-5  # relative, float32
# Laws hold however well a program was optimised, and most of this file's time is spent on that.
FAST = {"xla_backend_optimization_level": 0}

pytestmark = pytest.mark.parametrize("name", MIXERS)


@functools.cache
def _mixer(name):
  """Returns (layer, parameters away from their start, jitted run)."""
  layer = tiny.build("mixer", name)
  x = np.zeros((B, T, D), np.float32)
  params = jax.jit(layer.init, compiler_options=FAST)(jax.random.key(0), x)
  draw = np.random.default_rng(1)
  # Gates start at a constant; laws should hold where they depend on the token.
  params = jax.tree.map(lambda p: p + 0.3 * draw.standard_normal(p.shape).astype(p.dtype), params)

  @functools.partial(jax.jit, compiler_options=FAST)
  def run(params, x, state, ids, dy, dstate):
    """Returns ((y, state), gradients of <y, dy> + <state, dstate> for params, x and state)."""
    inexact = lambda tree: [s for s in jax.tree.leaves(tree) if jnp.issubdtype(s.dtype, jnp.inexact)]
    def score(params, x, moving):
      y, final = layer.apply(params, x, _merge(state, moving), ids)
      total = jnp.sum(y * dy)
      total += sum(jnp.sum(s * dstate) for s in inexact(final))
      return total, (y, final)
    args = params, x, inexact(state)
    grads, out = jax.grad(score, argnums=(0, 1, 2), has_aux=True)(*args)
    return out, grads

  return layer, params, run


def _merge(state, moving):
  """Puts differentiable leaves back among the others (counters, masks)."""
  moving = iter(moving)
  return jax.tree.map(
      lambda s: next(moving) if jnp.issubdtype(s.dtype, jnp.inexact) else s, state)


def _inputs(seed, T=T):
  draw = np.random.default_rng(seed)
  return draw.standard_normal((2, B, T, D), np.float32)


def _run(name, x, state=None, ids=None, dy=None, dstate=0.0):
  layer, params, run = _mixer(name)
  state = layer.init_state(x.shape[0]) if state is None else state
  ids = np.zeros(x.shape[:2], np.int32) if ids is None else ids
  return run(params, x, state, ids, np.zeros_like(x) if dy is None else dy, np.float32(dstate))


@functools.cache
def _forward(name):
  return jax.jit(_mixer(name)[0].apply, compiler_options=FAST)


def _next(name, x_B1D, state):
  """Returns (y, state) of one more token, without gradients, which cost most of a compilation."""
  return _forward(name)(_mixer(name)[1], x_B1D, state, np.zeros((B, 1), np.int32))


def _close(got, want, bound=BOUND):
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
    assert np.linalg.norm(g - w) <= bound * max(np.linalg.norm(w), 1e-3), (g.shape, g, w)


def test_no_token_sees_its_future(name):
  layer = _mixer(name)[0]
  if not getattr(layer, "causal", True):
    pytest.skip("the paper's layer is not causal")
  x, _ = _inputs(2)
  for t in range(T):
    dy = np.zeros_like(x)
    dy[:, t] = 1.0
    dx = np.asarray(_run(name, x, dy=dy)[1][1])
    assert np.all(dx[:, t + 1:] == 0)
    assert np.any(dx[:, t] != 0)


def test_a_sequence_cut_in_two_is_the_whole_sequence(name):
  x, dy = _inputs(3)
  (y, final), (_, dx, _) = _run(name, x, dy=dy, dstate=0.1)
  (y0, mid), _ = _run(name, x[:, :CUT])
  (y1, last), (_, dx1, dmid) = _run(name, x[:, CUT:], mid, dy=dy[:, CUT:], dstate=0.1)
  _close(np.concatenate([y0, y1], 1), y)
  _close(last, final)
  # The state is the only road from the first part to the second.
  _close(dx1, dx[:, CUT:])
  assert all(np.any(np.asarray(d) != 0) for d in dmid)


def test_token_by_token_is_the_whole_sequence(name):
  x, _ = _inputs(4)
  (y, final), _ = _run(name, x)
  state, ys = _mixer(name)[0].init_state(B), []
  for t in range(T):
    y_t, state = _next(name, x[:, t:t + 1], state)
    ys.append(y_t)
  _close(np.concatenate(ys, 1), y)
  _close(state, final)


def test_a_missing_state_is_the_empty_one(name):
  layer, params, _ = _mixer(name)
  x, _ = _inputs(5)
  (y, final), _ = _run(name, x)
  got, state = jax.jit(layer.apply)(params, x)
  _close(got, y)
  _close(state, final)


def test_the_state_keeps_its_form(name):
  layer = _mixer(name)[0]
  (_, final), _ = _run(name, _inputs(6)[0])
  form = lambda tree: jax.tree.map(lambda s: (s.shape, s.dtype), tree)
  assert form(final) == form(layer.init_state(B))


def test_packed_documents_are_separate_ones(name):
  x, dy = _inputs(7)
  ids = np.repeat([[3, 1]], B, 0).repeat([CUT, T - CUT], 1)
  (y, final), (dparams, dx, _) = _run(name, x, ids=ids, dy=dy, dstate=0.1)
  (y0, _), (dparams0, dx0, _) = _run(name, x[:, :CUT], dy=dy[:, :CUT])
  (y1, last), (dparams1, dx1, _) = _run(name, x[:, CUT:], dy=dy[:, CUT:], dstate=0.1)
  _close(y, np.concatenate([y0, y1], 1))
  _close(dx, np.concatenate([dx0, dx1], 1))
  _close(dparams, jax.tree.map(np.add, dparams0, dparams1))
  probe, _ = _inputs(8)
  _close(_next(name, probe[:, :1], final)[0], _next(name, probe[:, :1], last)[0])


def test_trailing_padding_changes_nothing(name):
  x, dy = _inputs(9)
  ids = np.repeat([[0] * CUT + [-1] * (T - CUT)], B, 0)
  dy[:, CUT:] = 0
  (y, final), (_, dx, _) = _run(name, x, ids=ids, dy=dy)
  (y0, last), (_, dx0, _) = _run(name, x[:, :CUT], dy=dy[:, :CUT])
  _close(y[:, :CUT], y0)
  _close(dx[:, :CUT], dx0)
  assert np.all(np.asarray(dx[:, CUT:]) == 0)
  probe, _ = _inputs(10)
  _close(_next(name, probe[:, :1], final)[0], _next(name, probe[:, :1], last)[0])


def test_rows_of_a_batch_do_not_meet(name):
  x, dy = _inputs(11)
  (y, _), (_, dx, _) = _run(name, x, dy=dy)
  other = x.copy()
  other[1] = -3 * x[1]
  (y_other, _), (_, dx_other, _) = _run(name, other, dy=dy)
  np.testing.assert_array_equal(y[0], y_other[0])
  np.testing.assert_array_equal(dx[0], dx_other[0])


def test_equal_tokens_give_finite_numbers(name):
  x = np.ones((B, T, D), np.float32)
  for scale in (0.0, 1.0, 30.0):
    out = _run(name, scale * x, dy=x, dstate=1.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))


def test_bfloat16_stays_near_float32(name):
  _, params, _ = _mixer(name)
  (y, _), _ = _run(name, x := _inputs(12)[0])
  half = tiny.build("mixer", name, dtype=jnp.bfloat16)
  got, state = jax.jit(half.apply)(params, x.astype(jnp.bfloat16), half.init_state(B))
  assert got.dtype == jnp.bfloat16
  form = lambda tree: jax.tree.map(lambda s: (s.shape, s.dtype), tree)
  assert form(state) == form(half.init_state(B))
  error = np.linalg.norm(np.asarray(got, np.float64) - y) / np.linalg.norm(y)
  assert error < 4e-2
