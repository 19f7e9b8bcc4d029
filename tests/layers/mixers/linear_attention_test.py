"""The mixer against explicit sums over all earlier tokens in float64, for every feature map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import linear_attention as la
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V = 2, 3, 4


def _softmax(z):
  z = np.exp(z - z.max(-1, keepdims=True))
  return z / z.sum(-1, keepdims=True)


def _scores(name, q, k, p):
  """Returns the score of every query with every key, [B,H,T,T], without passing by features if it can."""
  dot = lambda a, b: np.einsum("bthk,bshk->bhts", a, b)
  if name == "taylor":
    s = dot(q, k) / np.sqrt(K)
    return 1 + s + s * s / 2
  if name == "hedgehog":
    q, k = (np.einsum("bthk,hkj->bthj", a, p[m]) for a, m in ((q, "query_map"), (k, "key_map")))
    return dot(_softmax(q), _softmax(k)) + dot(_softmax(-q), _softmax(-k))
  f = {"elu1": lambda a: np.where(a > 0, 1 + a, np.exp(a)), "relu": lambda a: np.maximum(a, 0),
       "identity": lambda a: a, "l2": by_hand.unit}[name]
  return dot(f(q), f(k))


def _by_hand(layer, params, x):
  p = by_hand.wide(params["params"])
  past = by_hand.wide(layer.init_state(len(x)))
  f = by_hand.silu if layer.conv else lambda y: y
  q, k, v = (by_hand.project(p, name, x, past, H, f)[0] for name in ("query", "key", "value"))
  score = np.tril(_scores(layer.feature_map, q, k, p))
  y = np.einsum("bhts,bshv->bthv", score, v)
  if layer.denominator:
    y = y / (np.moveaxis(score.sum(-1), 1, 2)[..., None] + 1e-6)
  else:
    y = y / np.sqrt(K)
  if layer.output_norm:
    y = by_hand.rms(y, p["norm"]["scale"], 1e-5)
  return y.reshape(*x.shape[:2], -1) @ p["out"]["kernel"]


@pytest.mark.parametrize("fields", [
    dict(feature_map="elu1"), dict(feature_map="relu"), dict(feature_map="taylor"),
    dict(feature_map="hedgehog"), dict(feature_map="elu1", denominator=False, output_norm=True),
    dict(feature_map="identity", denominator=False),
    dict(feature_map="l2", denominator=False, output_norm=True, conv=3),
], ids=lambda fields: "-".join(map(str, fields.values())))
def test_the_mixer_is_the_sum_over_all_earlier_tokens(fields):
  layer = la.LinearAttention(heads=H, key_dim=K, value_dim=V, **fields)
  x = by_hand.tokens(0)
  params = {"params": toy.parameters(layer, 1, x)}
  y, state = jax.jit(layer.apply)(params, x)
  assert by_hand.error(y, _by_hand(layer, params, x)) < 1e-5
  assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, layer.init_state(len(x)))


def test_with_the_denominator_the_output_is_a_mean_of_values():
  layer = la.LinearAttention(heads=1, key_dim=K, value_dim=5, feature_map="elu1")
  x = by_hand.tokens(2)
  eye = dict(kernel=np.eye(5, dtype=np.float32))
  params = {"params": toy.parameters(layer, 3, x) | {"value": eye, "out": eye}}
  y = np.asarray(jax.jit(layer.apply)(params, x)[0])
  assert by_hand.error(y[:, 0], x[:, 0]) < 1e-5
  assert np.all(y <= np.maximum.accumulate(x, 1) + 1e-5) and np.all(y >= np.minimum.accumulate(x, 1) - 1e-5)


def test_hedgehog_starts_from_the_identity():
  layer = la.LinearAttention(heads=H, key_dim=K, value_dim=V, feature_map="hedgehog")
  params = jax.jit(layer.init)(jax.random.key(0), by_hand.tokens(4))["params"]
  for name in ("query_map", "key_map"):
    np.testing.assert_array_equal(params[name], np.stack([np.eye(K)] * H))


@pytest.mark.parametrize("fields, words", [
    (dict(feature_map="elu"), "feature_map='elu' is unknown; choose from elu1, relu, taylor"),
    (dict(feature_map="l2"), "feature_map='l2' has scores of both signs.*denominator=False")])
def test_features_that_are_unknown_or_cannot_be_divided_by_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(la.LinearAttention(**fields).init, jax.random.key(0), jnp.zeros((1, 2, 3)))


@pytest.mark.parametrize("name", ["elu1", "hedgehog"])
def test_the_entropy_shown_is_that_of_the_weights_of_earlier_tokens(name):
  layer = la.LinearAttention(heads=H, key_dim=K, value_dim=V, feature_map=name)
  x = by_hand.tokens(7)
  params = toy.parameters(layer, 8, x)
  ids = np.where(np.arange(x.shape[1]) < 2, 0, 1) + np.zeros((len(x), 1), np.int32)
  _, shown = jax.jit(lambda p, x: layer.apply({"params": p}, x, None, ids, mutable=["depth"]))(params, x)

  p = by_hand.wide(params)
  q, k = (by_hand.project(p, n, x, {}, H, lambda y: y)[0] for n in ("query", "key"))
  weight = np.tril(_scores(name, q, k, p)) * (ids[:, None, :, None] == ids[:, None, None, :])
  weight /= weight.sum(-1, keepdims=True)
  want = -np.sum(weight * np.log(np.where(weight > 0, weight, 1.0)), axis=-1).mean(axis=1)
  np.testing.assert_allclose(shown["depth"]["attention_entropy_BT"][0], want, rtol=1e-4, atol=1e-5)
