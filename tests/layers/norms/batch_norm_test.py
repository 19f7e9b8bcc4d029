"""BatchNorm against float64: batch and running statistics, gradients, its affine form."""

import jax
import numpy as np
import pytest

from layers.convert.fuse_affine import fuse
from layers.norms.batch_norm import BatchNorm
from tests.layers.norms import driven

B, T, D, EPS = 2, 4, 3, 1e-5


def _by_hand(x, scale, bias):
  x = np.asarray(x, np.float64)
  return scale * (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + EPS) + bias


def test_training_is_the_equation_with_its_gradient_and_its_averages():
  module, x, G = BatchNorm(momentum=0.7, train=True), 3 * driven.tokens(0, B, T, D), driven.tokens(1, B, T, D)
  state = driven.start(module, x)
  scale, bias = (np.asarray(state["params"][k], np.float64) for k in ("scale", "bias"))
  y, (params, dx), new = driven.step(module, state, x, G, 0)
  assert driven.rel(y, _by_hand(x, scale, bias)) < 1e-6
  assert driven.rel(dx, driven.difference(lambda x: _by_hand(x, scale, bias), x, G)) < 1e-5
  assert driven.rel(params["scale"], np.sum(G * _by_hand(x, 1.0, 0.0), (0, 1))) < 1e-5
  assert driven.rel(params["bias"], G.sum((0, 1), dtype=np.float64)) < 1e-5
  x = x.astype(np.float64)
  assert driven.rel(new["batch_stats"]["mean"], 0.3 * x.mean((0, 1))) < 1e-6
  assert driven.rel(new["batch_stats"]["var"], 0.7 + 0.3 * x.var((0, 1), ddof=1)) < 1e-6


def test_evaluation_uses_the_averages_and_folds_into_the_map_that_reads_it():
  module, x = BatchNorm(), driven.tokens(2, B, T, D)
  state = driven.start(module, x)
  mean, var = driven.tokens(3, D), np.abs(driven.tokens(4, D)) + 0.1
  state["batch_stats"] = {"mean": mean, "var": var}
  got = np.asarray(jax.jit(module.apply)(state, x))
  want = state["params"]["scale"] * (x.astype(np.float64) - mean) / np.sqrt(var + EPS) + state["params"]["bias"]
  assert driven.rel(got, want) < 1e-6
  kernel = driven.tokens(5, D, 5)
  fused_kernel, fused_bias = fuse(kernel, 0.0, *module.as_affine(state))
  assert driven.rel(x @ np.asarray(fused_kernel) + np.asarray(fused_bias), got @ kernel) < 1e-6


def test_uniform_gains_are_those_of_training_only_batch_norm():
  params = jax.jit(BatchNorm(gain_init="uniform").init)(jax.random.key(1), np.ones((1, 1, 400), np.float32))["params"]
  assert np.all((0 <= params["scale"]) & (params["scale"] < 1)) and abs(np.mean(params["scale"]) - 0.5) < 0.05
  assert np.all(params["bias"] == 0)


@pytest.mark.parametrize("fields, mask, says", [
    (dict(momentum=1.0), None, "momentum=1.0"), (dict(gain_init="zeros"), None, "gain_init='zeros'"),
    ({}, np.ones((T, B), bool), r"mask of shape \(4, 2\).*\(2, 4\)")])
def test_what_cannot_be_is_refused(fields, mask, says):
  with pytest.raises(ValueError, match=says):
    BatchNorm(**fields).init(jax.random.key(0), np.ones((B, T, D), np.float32), mask)
