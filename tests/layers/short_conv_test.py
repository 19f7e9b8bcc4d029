"""The short convolution against a sum over tokens in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import short_conv as sc

B, T, F, W = 2, 7, 3, 4
short_conv = jax.jit(sc.short_conv)

# Row by row: two documents; padding between documents and after the last.
IDS = np.array([[1, 1, 1, 1, 0, 0, 0], [2, 2, -1, 3, 3, 3, -1]])


def _by_hand(x, c, past, ids):
  """Returns (y, past for the tokens that follow); token p of the past stands at place p - P."""
  x, c, past = (np.asarray(a, np.float64) for a in (x, c, past))
  P, y = len(c) - 1, np.zeros(x.shape)
  final = np.zeros(past.shape)
  for b in range(len(x)):
    real = [t for t in range(T) if ids[b, t] >= 0]
    line = np.concatenate([past[b], x[b]])
    name = [ids[b, real[0]]] * P + list(ids[b])
    for t in range(T):
      for w in range(P + 1):
        if name[P + t - w] == ids[b, t]:
          y[b, t] += c[w] * line[P + t - w]
    for p, place in enumerate(range(real[-1] + 1, real[-1] + 1 + P)):
      if name[place] == ids[b, real[-1]]:
        final[b, p] = line[place]
  return y, final


def _inputs(seed, W=W):
  draw = np.random.default_rng(seed)
  return (draw.standard_normal((B, T, F), np.float32), draw.standard_normal((W, F), np.float32),
          draw.standard_normal((B, W - 1, F), np.float32))


@pytest.mark.parametrize("width", [2, 4, 9])
@pytest.mark.parametrize("packed", [False, True])
def test_the_convolution_is_its_sum_over_the_tokens_of_a_segment(width, packed):
  x, c, past = _inputs(0, width)
  ids = IDS if packed else np.zeros((B, T), int)
  want, want_past = _by_hand(x, c, past, ids)
  got, got_past = short_conv(x, c, past, ids if packed else None)
  real = ids >= 0  # what padding computes is nobody's
  np.testing.assert_allclose(np.asarray(got)[real], want[real], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(got_past, want_past, rtol=1e-6)


def test_no_past_is_a_past_of_zeros():
  x, c, past = _inputs(1)
  np.testing.assert_array_equal(short_conv(x, c)[0], short_conv(x, c, 0 * past)[0])


def test_width_one_scales_each_channel_and_remembers_nothing():
  x, c, _ = _inputs(2, 1)
  for ids in (None, IDS):
    y, past = short_conv(x, c, None, ids)
    np.testing.assert_array_equal(y, x * c[0])
    assert past.shape == (B, 0, F)


def test_row_w_of_the_filter_weighs_the_token_w_back():
  x, _, _ = _inputs(3)
  for w in range(W):
    c = np.zeros((W, F), np.float32)
    c[w] = 1
    np.testing.assert_array_equal(short_conv(x, c)[0][:, w:], x[:, :T - w])


def test_an_untrained_filter_has_unit_gain_over_its_tokens():
  params = jax.jit(sc.ShortConv(8).init)(jax.random.key(0), np.zeros((1, 1, 4096), np.float32))
  c = np.asarray(params["params"]["filter"], np.float64)
  assert c.shape == (8, 4096)
  # 32768 draws: 3% is five standard deviations of the mean square.
  np.testing.assert_allclose(8 * np.mean(c * c), 1.0, rtol=0.03)


def test_dtype_is_that_of_the_input():
  x, c, past = _inputs(4)
  y, last = short_conv(x.astype(jnp.bfloat16), c, past)
  assert y.dtype == last.dtype == jnp.bfloat16


@pytest.mark.parametrize("width", [1, 2, 4, 9])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_those_of_the_sum(width, packed):
  """Linear in tokens and past, linear in the filter: a directional derivative is the value along it."""
  x, c, past = _inputs(3, width)
  ids = IDS if packed else np.zeros_like(IDS)
  draw = np.random.default_rng(4)
  g, dx, dc, dpast = (draw.standard_normal(a.shape, np.float32) for a in (x, x, c, past))
  g = np.where(ids[..., None] >= 0, g, 0)  # what a padded position gives means nothing
  loss = lambda x, c, past: jnp.sum(sc.short_conv(x, c, past, ids if packed else None)[0] * g)
  grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, c, past)
  along = [sum(np.vdot(g, _by_hand(*at, ids)[0]) for at in ((dx, c, np.zeros_like(past)), (np.zeros_like(x), c, dpast))),
           np.vdot(g, _by_hand(x, dc, past, ids)[0])]
  for got, want in zip((np.vdot(grads[0], dx) + np.vdot(grads[2], dpast), np.vdot(grads[1], dc)), along, strict=True):
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
