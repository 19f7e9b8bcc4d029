"""The memory as convolution and recurrence, what it remembers, and both mixers that have one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import hippo
from layers.mixers import lmu, lmuformer
from tests.layers import toy
from tests.layers.mixers import by_hand

F, N, THETA = 3, 4, 6.0
LAYERS = {"lmu": functools.partial(lmu.LMU, channels=F, order=N, theta=THETA, hidden=7),
          "lmuformer": functools.partial(lmuformer.LMUFormer, order=N, theta=THETA)}

memory = jax.jit(lmu.memory)


@functools.cache
def _layer(name, form="conv"):
  """Returns (layer, jitted apply, jitted gradients of a weighted sum of outputs and state)."""
  layer = LAYERS[name](form=form)
  def score(params, x, state, dy):
    y, final = layer.apply(params, x, state)
    return jnp.sum(y * dy) + 0.1 * sum(jnp.sum(s) for s in final.values())
  return layer, jax.jit(layer.apply), jax.jit(jax.grad(score, argnums=(0, 1, 2)))


def _memory(u, m):
  """Returns (m at every token, last m) of inputs [B,T,F]."""
  A, B = hippo.zoh(*hippo.legt(N, THETA), 1.0)
  seen = []
  for t in range(u.shape[1]):
    m = m @ A.T + u[:, t, :, None] * B
    seen.append(m)
  return np.stack(seen, 1), m


def _by_hand(name, params, x, state):
  p, state = by_hand.wide(params["params"]), by_hand.wide(state)
  if name == "lmu":
    m, last = _memory(x @ p["value"]["kernel"], state["m_BFN"])
    h = np.tanh(m.reshape(*x.shape[:2], -1) @ p["memory"]["kernel"] + by_hand.affine(p["input"], x))
    return h @ p["out"]["kernel"], {"m_BFN": last}
  u = np.maximum(by_hand.affine(p["value"], x), 0)
  m, last = _memory(u, state["m_BN"][:, None])
  y = by_hand.affine(p["out"], np.concatenate([m[:, :, 0], x], -1))
  return np.maximum(y, 0), {"m_BN": last[:, 0]}


@pytest.mark.parametrize("form", ["conv", "recurrent"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_mixer_is_the_equations_of_its_docstring(name, form):
  layer, run, _ = _layer(name, form)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  assert by_hand.error(run(params, x, state), _by_hand(name, params, x, state)) < 1e-5


@pytest.mark.parametrize("name", LAYERS)
def test_the_convolution_has_the_gradients_of_the_recurrence(name):
  (layer, _, conv), (_, _, recurrent) = _layer(name, "conv"), _layer(name, "recurrent")
  x, state, dy = by_hand.tokens(3), by_hand.state(layer, 4), by_hand.tokens(5)
  params = {"params": toy.parameters(layer, 6, x)}
  got, want = conv(params, x, state, dy), recurrent(params, x, state, dy)
  assert by_hand.error(got, jax.tree.map(np.asarray, want)) < 2e-5


@pytest.mark.parametrize("order", [8, 12])
def test_the_memory_read_by_legendre_polynomials_is_the_delayed_signal(order):
  theta, T = 40.0, 160
  signal = lambda t: np.sin(2 * np.pi * t / 50) + 0.5 * np.cos(2 * np.pi * t / 31)
  A, B = (m.astype(np.float32) for m in hippo.zoh(*hippo.legt(order, theta), 1.0))
  u = signal(np.arange(T)).astype(np.float32)[None, :, None]
  m = np.asarray(memory(A, B, u, np.zeros((1, 1, order), np.float32))[0])[0, 60:, 0]
  for share in (0.2, 0.5, 0.8):
    read = m @ hippo.legt_reader(order, share)[0]
    # A held input is half a token old on average.
    want = signal(np.arange(60, T) - share * theta + 0.5)
    assert np.sqrt(np.mean((read - want) ** 2)) < {8: 0.1, 12: 0.02}[order]


def test_the_window_forgets_what_left_it():
  A, B = hippo.zoh(*hippo.legt(N, THETA), 1.0)
  assert np.abs(np.linalg.eigvals(A)).max() < 1
  assert np.linalg.norm(np.linalg.matrix_power(A, int(8 * THETA)) @ B) < 1e-3 * np.linalg.norm(B)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("fields, match", [
    (dict(order=0), "order=0 and theta=6.0 must be at least 1"),
    (dict(theta=0.5), "order=4 and theta=0.5 must be at least 1"),
    (dict(form="fft"), "form='fft' must be one of conv, recurrent")])
def test_fields_without_a_meaning_are_refused(name, fields, match):
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(LAYERS[name](**fields).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
