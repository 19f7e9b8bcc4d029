"""Softmax attention and its cache against sums over visible tokens in float64."""

import functools

import jax
import numpy as np
import pytest

from layers import token_cache
from layers.mixers.attention import Attention
from tests.layers import toy

B, T, D, H, K = 2, 6, 5, 4, 4
IDS = np.array([[3, 3, 3, 1, 1, 1], [0, 0, 2, 2, 2, -1]])


def _tokens(seed, T=T):
  return np.random.default_rng(seed).standard_normal((B, T, D), np.float32)


@functools.cache
def _layer(**fields):
  """Returns (layer, drawn parameters, jitted apply); `fields` beside four heads of four."""
  layer = Attention(heads=H, head_dim=K, **fields)
  params = {"params": toy.parameters(layer, 0, _tokens(0))}
  return layer, params, jax.jit(functools.partial(layer.apply, params))


def _turn(x, position, theta):
  half = K // 2
  z = x[..., :half] + 1j * x[..., half:]
  z = z * np.exp(1j * position[..., None, None] * theta ** (-np.arange(half) / half))
  return np.concatenate([z.real, z.imag], -1)


def _by_hand(params, x, ids, *, groups=H, window=0, theta=10_000.0, qk_norm=False, causal=True):
  """One reader, one head and one source at a time."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
  x = x.astype(np.float64)
  q, k, v = (np.einsum("btd,dhk->bthk", x, p[n]["kernel"]) for n in ("query", "key", "value"))
  if qk_norm:
    q, k = (a / np.sqrt(np.mean(a * a, -1, keepdims=True) + 1e-6) for a in (q, k))
  place = np.stack([[np.sum(row[:t] == row[t]) for t in range(T)] for row in ids])
  if theta:
    q, k = _turn(q, place, theta), _turn(k, place, theta)
  y = np.zeros(x.shape)
  for b, t, h in np.ndindex(B, T, H):
    g = h * groups // H
    seen = [s for s in range(T) if ids[b, s] == ids[b, t] and (s <= t or not causal)
            and (not window or abs(t - s) < window)]
    weight = np.exp([q[b, t, h] @ k[b, s, g] / np.sqrt(K) for s in seen])
    y[b, t] += (weight / weight.sum()) @ v[b, seen, g] @ p["out"]["kernel"][h]
  return y


BOTH_WAYS = dict(direction="bidirectional")


@pytest.mark.parametrize("packed, fields", [
    (False, dict()),
    (True, dict()),
    (False, dict(groups=1, window=3, rope_theta=20.0)),
    (True, dict(groups=2, qk_norm=True, rope_theta=0.0)),
    (False, BOTH_WAYS),
    (True, dict(BOTH_WAYS, window=2, groups=2)),
])
def test_attention_is_its_sum_over_visible_tokens(packed, fields):
  _, params, run = _layer(**fields)
  x, ids = _tokens(1), IDS if packed else np.zeros((B, T), int)
  got = run(x, None, IDS if packed else None)[0]
  want = _by_hand(params, x, ids, groups=fields.get("groups", H), window=fields.get("window", 0),
                  theta=fields.get("rope_theta", 10_000.0), qk_norm=fields.get("qk_norm", False),
                  causal=fields.get("direction") != "bidirectional")
  real = ids >= 0  # what padding reads is nobody's
  error = np.linalg.norm((got - want)[real]) / np.linalg.norm(want[real])
  assert error < 3e-6


SHORT = dict(window=4, max_tokens=3)


def _decode(run, x, state):
  ys = []
  for t in range(x.shape[1]):
    y, state = run(x[:, t:t + 1], state)
    ys.append(y)
  return np.concatenate(ys, 1), state


def test_a_cache_one_shorter_than_the_window_decodes_the_whole_row():
  layer, _, run = _layer(**SHORT)
  x = _tokens(2, T=9)
  y, _ = _decode(run, x, layer.init_state(B))
  np.testing.assert_allclose(y, run(x)[0], rtol=1e-5, atol=1e-5)


def test_a_full_cache_forgets_the_oldest_token_and_nothing_else():
  layer, _, run = _layer(max_tokens=3, rope_theta=0.0)
  x = _tokens(3, T=5)
  last = lambda x: np.asarray(_decode(run, x, layer.init_state(B))[0][:, -1])
  for t in range(5):
    other = x.copy()
    other[:, t] += 1
    assert np.any(last(other) != last(x)) == (t > 0)


def test_a_full_cache_reads_what_a_window_reads():
  layer, _, run = _layer(max_tokens=3)
  _, _, windowed = _layer(**SHORT)
  x = _tokens(4, T=9)
  y, _ = _decode(run, x, layer.init_state(B))
  np.testing.assert_allclose(y, windowed(x)[0], rtol=1e-5, atol=1e-5)


def test_a_row_of_padding_leaves_the_cache_alone():
  _, _, run = _layer(max_tokens=4)
  _, cache = run(_tokens(12))
  jax.tree.map(np.testing.assert_array_equal, run(_tokens(13), cache, np.full((B, T), -1))[1], cache)


def test_decoding_costs_the_same_at_every_position():
  layer, params, _ = _layer(max_tokens=3)
  traces = []

  @jax.jit
  def step(x, state):
    traces.append(x.shape)
    return layer.apply(params, x, state)

  form = lambda tree: jax.tree.map(lambda s: (s.shape, s.dtype), tree)
  _, state = _decode(step, _tokens(5, T=9), layer.init_state(B))
  assert form(state) == form(layer.init_state(B)) and len(traces) == 1
  np.testing.assert_array_equal(state["seen_B"], 9)


def test_a_window_hides_what_lies_behind_it():
  _, _, run = _layer(**SHORT)
  x = _tokens(6, T=9)
  other = x.copy()
  other[:, :4] += 1
  changed = np.any(np.asarray(run(x)[0] != run(other)[0]), axis=(0, 2))
  assert changed.tolist() == [True] * 7 + [False] * 2


def test_an_offset_common_to_all_tokens_changes_nothing():
  layer, _, run = _layer(max_tokens=3)
  x, near = _tokens(6, T=3), layer.init_state(B)
  far = near | {"seen_B": near["seen_B"] + 500}
  np.testing.assert_allclose(run(x, far)[0], run(x, near)[0], rtol=1e-3, atol=1e-3)


def test_without_positions_a_bidirectional_layer_commutes_with_a_shuffle():
  _, _, run = _layer(rope_theta=0.0, direction="bidirectional")
  x, order = _tokens(7), np.random.default_rng(8).permutation(T)
  np.testing.assert_allclose(run(x[:, order])[0], run(x)[0][:, order], rtol=1e-5, atol=1e-5)


def test_normalised_queries_and_keys_do_not_see_the_scale_of_the_input():
  _, _, run = _layer(qk_norm=True, rope_theta=0.0)
  x = 10 * _tokens(9)
  np.testing.assert_allclose(run(100 * x)[0], 100 * run(x)[0], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("fields", [dict(groups=2, window=3, qk_norm=True), BOTH_WAYS])
def test_sources_that_are_read_again_are_read_as_the_row_read_them(fields):
  _, _, run = _layer(**fields)
  x, index = _tokens(10), np.array([[1, 4], [0, 3]])
  of = lambda a: np.take_along_axis(np.asarray(a), index.reshape(*index.shape, *[1] * (np.ndim(a) - 2)), axis=1)
  y, sources = run(x, token_cache.Open(None), IDS)
  np.testing.assert_array_equal(y, run(x, None, IDS)[0])
  again, same = run(of(x), sources._replace(mask_BTS=of(sources.mask_BTS), position_BT=of(sources.position_BT)))
  np.testing.assert_allclose(again, of(y), rtol=1e-5, atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, same.arrays, sources.arrays)


def test_a_cache_that_hands_out_its_sources_goes_on_as_before():
  _, _, run = _layer(max_tokens=4)
  x, (_, cache) = _tokens(11), run(_tokens(10))
  want, after = run(x, cache)
  got, sources = run(x, token_cache.Open(cache))
  np.testing.assert_array_equal(got, want)
  jax.tree.map(np.testing.assert_array_equal, sources.cache, after)


@pytest.mark.parametrize("fields, rule", [
    (dict(groups=3), r"groups=3 must divide heads=4"),
    (dict(groups=8), r"groups=8 must divide heads=4"),
    (dict(head_dim=5), r"head_dim=5 must be even.*rope_theta=0"),
    (dict(direction="both"), r"direction='both' must be 'causal' or 'bidirectional'"),
    (dict(window=8, max_tokens=6), r"max_tokens=6 must reach window - 1 = 7"),
])
def test_fields_that_do_not_fit_are_refused(fields, rule):
  layer = Attention(**{**dict(heads=4, head_dim=4), **fields})
  with pytest.raises(ValueError, match=rule):
    jax.eval_shape(layer.init, jax.random.key(0), _tokens(0))


def test_a_bidirectional_layer_takes_no_state():
  layer = Attention(heads=4, head_dim=4, direction="bidirectional")
  with pytest.raises(ValueError, match=r"direction='bidirectional' reads the whole row"):
    jax.eval_shape(layer.init, jax.random.key(0), _tokens(0), layer.init_state(B))
