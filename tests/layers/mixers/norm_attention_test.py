"""The mixer against explicit sums in float64, what it does not see, and how steep it can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import linear_attention, norm_attention
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V = 2, 3, 4
FIELDS = dict(heads=H, key_dim=K, value_dim=V)
FEATURES = {"elu1": lambda a: np.where(a > 0, 1 + a, np.exp(a)), "elu": lambda a: np.where(a > 0, a, np.expm1(a)),
            "relu": lambda a: np.maximum(a, 0), "identity": lambda a: a}
LAYERS = {"norm": norm_attention.NormAttention(**FIELDS, feature_map="relu", eps=1.0),
          "divide": linear_attention.LinearAttention(**FIELDS, feature_map="relu")}
RUN = {name: jax.jit(layer.apply) for name, layer in LAYERS.items()}
SLOPES = {name: jax.jit(jax.grad(lambda p, x, layer=layer: jnp.sum(jnp.sin(layer.apply({"params": p}, x)[0]))))
          for name, layer in LAYERS.items()}


@pytest.mark.parametrize("name", FEATURES)
def test_the_mixer_is_the_sum_over_all_earlier_tokens(name):
  layer = norm_attention.NormAttention(**FIELDS, feature_map=name)
  x = by_hand.tokens(0)
  params = {"params": toy.parameters(layer, 1, x)}
  p = by_hand.wide(params["params"])
  q, k, v = (np.einsum("btd,dhk->bthk", x, p[part]["kernel"]) for part in ("query", "key", "value"))
  score = np.tril(np.einsum("bthk,bshk->bhts", FEATURES[name](q), FEATURES[name](k)))
  y = np.einsum("bhts,bshv->bthv", score, v).reshape(*x.shape[:2], -1)
  want = by_hand.rms(y, 1.0, 1e-6) @ p["out"]["kernel"]
  assert by_hand.error(jax.jit(layer.apply)(params, x)[0], want) < 1e-5


def _scaled(params, **factors):
  return params | {name: dict(kernel=np.float32(factor) * params[name]["kernel"]) for name, factor in factors.items()}


def test_the_norm_sees_the_size_of_neither_keys_nor_values_and_the_quotient_that_of_values():
  x = 100 * by_hand.tokens(2)  # far above eps
  for name, ignores in (("norm", dict(key=10, value=7)), ("divide", dict(key=10))):
    params = toy.parameters(LAYERS[name], 3, x)
    got, want = (RUN[name]({"params": p}, x)[0][:, 2:] for p in (_scaled(params, **ignores), params))
    assert by_hand.error(np.asarray(got), np.asarray(want)) < 1e-3
  louder = RUN["divide"]({"params": _scaled(params, value=7)}, x)[0][:, 2:]
  assert by_hand.error(np.asarray(louder), 7 * np.asarray(want)) < 1e-3


def test_small_scores_make_the_quotient_steep_and_not_the_norm():
  # relu features are as small as the keys, so the sum divided by shrinks with them.
  x, steepest = by_hand.tokens(4), {}
  for name in LAYERS:
    params = toy.parameters(LAYERS[name], 5, x)
    steepest[name] = [np.max(np.abs(SLOPES[name](_scaled(params, key=size), x)["key"]["kernel"]))
                      for size in (1e-2, 1e-3, 1e-4)]
  growth = {name: np.divide(of[1:], of[:-1]) for name, of in steepest.items()}
  assert np.all(growth["divide"] > 8)
  # y is at most its sum over sqrt(eps): where eps is most of the norm, the sum alone decides.
  assert np.all(growth["norm"] < 1.2)


@pytest.mark.parametrize("fields, words", [
    (dict(feature_map="softplus"), "feature_map='softplus' is unknown; choose from elu1, elu"),
    (dict(eps=0.0), "eps=0.0 must be above 0")])
def test_unknown_features_and_an_unbounded_slope_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(norm_attention.NormAttention(**fields).init, jax.random.key(0), jnp.zeros((1, 2, 3)))
