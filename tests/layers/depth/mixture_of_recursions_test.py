"""Recursion over fewer and fewer tokens: against the layer run by hand, and where it is plain recursion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import context as ctx
from layers.depth.mixture_of_recursions import MixtureOfRecursions
from layers.placement import placement
from layers.stack import Block, Stack
from tests.layers import toy

T, D, R = 6, 4, 3
X = np.random.default_rng(0).standard_normal((1, T, D), np.float32)
BLOCK = functools.partial(Block, toy.Mean, toy.Tanh, toy.Soft)
ONE = np.float32(1)


def _layer(**fields):
  return MixtureOfRecursions(BLOCK, recursions=R, **fields)


PARAMS = toy.parameters(_layer(), 1, X, ctx.first({}), None, ONE, ONE)
plain = jax.jit(lambda x: BLOCK().apply({"params": PARAMS["block"]}, x, ctx.first({}), None, ONE, ONE)[0])


def _run(layer, params, x):
  run = lambda params: layer.apply({"params": params}, jnp.asarray(x), ctx.first({}), None, ONE, ONE, mutable=["losses", "metrics"])
  (y, _, _), sown = jax.jit(run)(params)
  return np.asarray(y), sown


@pytest.mark.parametrize("combine", ["authors", "residual"])
def test_each_recursion_is_the_layer_on_the_best_of_those_left(combine):
  got, sown = _run(_layer(combine=combine, router_weight=1.0), PARAMS, X)
  x, active, loss, right = X[0].copy(), np.arange(T), 0.0, []
  for r, K in enumerate((6, 4, 2)):
    logits = (x @ PARAMS[f"router_{r}"]["kernel"])[:, 0]
    index = np.sort(active[np.argsort(-logits[active])[:K]])
    label = np.isin(active, index)
    loss += np.mean(np.log1p(np.exp(logits[active])) - label * logits[active])
    right.append(np.mean((logits[active] > 0) == label))
    y = np.asarray(plain(x[None, index]))[0]
    p = 0.1 / (1 + np.exp(-logits[index]))[:, None]
    x[index] += p * (y if combine == "authors" else y - x[index])
    active = index
    np.testing.assert_allclose(sown["metrics"][f"kept_{r}"][0], K / T, rtol=1e-6)
  np.testing.assert_allclose(got[0], x, rtol=2e-5, atol=2e-5)
  np.testing.assert_allclose(sown["losses"]["choice"][0], loss, rtol=1e-5)
  np.testing.assert_allclose(sown["metrics"]["choice_accuracy"][0], np.mean(right[1:]), rtol=1e-6)


def test_one_recursion_with_full_weight_is_the_layer():
  layer = MixtureOfRecursions(BLOCK, recursions=1, alpha=2.0, combine="residual")
  params = {"block": PARAMS["block"], "router_0": {"kernel": np.zeros((D, 1), np.float32)}}
  np.testing.assert_allclose(_run(layer, params, X)[0], plain(X), rtol=1e-5, atol=1e-5)


def test_without_weight_nothing_changes():
  np.testing.assert_array_equal(_run(_layer(alpha=0.0), PARAMS, X)[0], X)


def test_the_ends_of_the_stack_are_plain_layers():
  stack = Stack((toy.Mean,) * 4, None, toy.Soft, placement("pre", 4), policy=MixtureOfRecursions)
  assert [(run.first, run.repeats) for run in stack.runs()] == [(0, 1), (1, 2), (3, 1)]


def test_what_it_cannot_do_is_refused():
  with pytest.raises(ValueError, match="recursions=3: this layer has no state for decoding"):
    _layer().apply({"params": PARAMS}, X, ctx.first({}), toy.Mean().init_state(1), ONE, ONE)
  with pytest.raises(ValueError, match="combine='both' is unknown; choose from authors, residual"):
    _layer(combine="both").ratio_at(0, 1)
