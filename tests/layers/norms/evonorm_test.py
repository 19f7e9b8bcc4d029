"""The six EvoNorms against float64, on sequences and images."""

import jax
import numpy as np
import pytest

from layers.norms import evonorm
from layers.norms.evonorm import EvoNorm
from tests.layers.norms import driven

SHAPES = {"tokens": (2, 4, 4), "images": (2, 2, 3, 4)}
EPS = 1e-5


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _by_hand(kind, x, slope, scale, bias, groups):
  *_, D = x.shape
  space, batch = tuple(range(1, x.ndim - 1)), tuple(range(x.ndim - 1))
  s_B = np.sqrt(x.var(batch) + EPS)
  r_I = np.sqrt(np.mean(x**2, space, keepdims=True) + EPS)
  grouped = x.reshape(x.shape[0], -1, groups, D // groups)
  repeat = lambda v: np.repeat(v[:, 0, :, 0], D // groups, -1).reshape(x.shape[0], *(1 for _ in space), D)
  s_G = np.sqrt(repeat(grouped.var((1, 3), keepdims=True)) + EPS)
  r_G = np.sqrt(repeat(np.mean(grouped**2, (1, 3), keepdims=True)) + EPS)
  y = {"B0": lambda: x / np.maximum(s_B, slope * x + np.sqrt(x.var(space, keepdims=True) + EPS)),
       "B1": lambda: x / np.maximum(s_B, (x + 1) * r_I), "B2": lambda: x / np.maximum(s_B, r_I - x),
       "S0": lambda: x * _sigmoid(slope * x) / s_G, "S1": lambda: x * _sigmoid(x) / s_G,
       "S2": lambda: x * _sigmoid(x) / r_G}[kind]()
  return scale * y + bias


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", evonorm.KINDS)
def test_training_is_the_equation_with_the_gradient_through_every_statistic(kind, shape):
  size = SHAPES[shape]
  module, x, G = EvoNorm(kind, groups=2, train=True), 2 * driven.tokens(0, *size), driven.tokens(1, *size)
  state = driven.start(module, x)
  p = {k: np.asarray(v, np.float64) for k, v in {"slope": 0, **state["params"]}.items()}
  assert ("slope" in state["params"]) == kind.endswith("0")
  want = lambda x: _by_hand(kind, x, p["slope"], p["scale"], p["bias"], 2)
  y, (_, dx), new = driven.step(module, state, x, G, 0)
  assert driven.rel(y, want(x.astype(np.float64))) < 2e-6
  assert driven.rel(dx, driven.difference(want, x, G, 1e-6)) < 1e-4
  if kind.startswith("B"):
    batch = tuple(range(x.ndim - 1))
    assert driven.rel(new["batch_stats"]["var"], 0.9 + 0.1 * x.astype(np.float64).var(batch)) < 1e-6
  else:
    evaluated = jax.jit(EvoNorm(kind, groups=2).apply)({"params": state["params"]}, x)
    np.testing.assert_array_equal(evaluated, y)  # S norms have no state


def test_evaluation_of_a_b_norm_reads_the_running_variance():
  x = driven.tokens(2, 2, 4, 4)
  module = EvoNorm("B1")
  state = driven.start(module, x)
  state["batch_stats"] = {"var": np.full(4, 1e6, np.float32)}  # larger than all else: x / 1000
  want = state["params"]["scale"] * x / 1e3 + state["params"]["bias"]
  assert driven.rel(jax.jit(module.apply)(state, x), want) < 1e-5


def test_without_bending_only_gain_and_bias_remain():
  x, module = driven.tokens(3, 2, 4, 4), EvoNorm("B0", bends=False, train=True)
  state = driven.start(module, x)
  assert set(state) == {"params"}
  want = state["params"]["scale"] * x + state["params"]["bias"]
  assert driven.rel(jax.jit(module.apply)(state, x), want) < 1e-6


def test_groups_fall_until_they_divide_the_width():
  assert [evonorm.largest_divisor(width, 32) for width in (64, 48, 20, 31)] == [32, 24, 20, 31]


@pytest.mark.parametrize("fields, says", [
    (dict(kind="B3"), "kind='B3' is unknown"), (dict(kind="B0"), "at least 2 positions per sample, not 1"),
    (dict(groups=0), "groups=0 must be at least 1"), (dict(kind="B1", momentum=2.0), "momentum=2.0")])
def test_what_cannot_be_is_refused(fields, says):
  with pytest.raises(ValueError, match=says):
    EvoNorm(**fields).init(jax.random.key(0), np.ones((2, 1, 4), np.float32))
