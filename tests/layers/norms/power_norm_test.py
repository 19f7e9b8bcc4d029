"""PowerNorm against a float64 loop over steps: forward, approximate backward, both running statistics."""

import jax
import numpy as np
import pytest

from layers.norms.power_norm import PowerNorm
from tests.layers.norms import driven

B, T, D, EPS = 2, 3, 4, 1e-5
CASES = [dict(groups=0), dict(groups=1, divisor="batch"), dict(groups=2), dict(groups=0, divisor="batch")]
WARMUP, STEPS = 3, 6  # so many are long enough to pass both sides of the warm-up


def _scaled(x, groups):
  """Returns (scaled x, pull back of a cotangent)."""
  if not groups:
    return x, lambda g: g
  x_G = x.reshape(B, T, groups, -1)
  r = 1 / np.sqrt(np.mean(x_G**2, -1, keepdims=True) + EPS)
  xh = x_G * r
  def pull(g):
    g = g.reshape(x_G.shape)
    return (r * (g - xh * np.mean(g * xh, -1, keepdims=True))).reshape(x.shape)
  return xh.reshape(x.shape), pull


class _ByHand:
  """The card's algorithm; af = 0.9, ab = 0.8."""

  def __init__(self, groups, divisor="forward"):
    self.groups, self.divisor = groups, divisor
    self.phi, self.nu, self.t = np.ones(D), np.zeros(D), 0

  def step(self, x, G, g, b):
    self.t += 1
    x, pull = _scaled(x, self.groups)
    s = np.mean(x**2, (0, 1))
    d = s if self.t <= WARMUP else self.phi
    z = x / np.sqrt(d + EPS)
    y = g * z + b
    a = G * g - (1 - 0.8) * self.nu * z
    dx = a / np.sqrt((s if self.divisor == "batch" else d) + EPS)
    self.nu = self.nu + np.mean(a * z, (0, 1))
    if self.t < WARMUP:
      self.phi = self.phi * (self.t - 1) / self.t + s / self.t
    self.phi = 0.9 * self.phi + 0.1 * s
    return y, pull(dx), np.sum(G * z, (0, 1)), np.sum(G, (0, 1))


def _module(**fields):
  return PowerNorm(warmup=WARMUP, backward_momentum=0.8, train=True, **fields)


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_training_is_the_algorithm_step_by_step(fields):
  module, want = _module(**fields), _ByHand(**fields)
  state = driven.start(module, driven.tokens(0, B, T, D))
  scale, bias = (np.asarray(state["params"][k], np.float64) for k in ("scale", "bias"))
  for t in range(STEPS):
    x, G = driven.tokens(2 * t, B, T, D) * (1 + t), driven.tokens(2 * t + 1, B, T, D)
    y, (params, dx), state = driven.step(module, state, x, G, t)
    for got, by_hand in zip((y, dx, params["scale"], params["bias"]),
                            want.step(*(np.asarray(v, np.float64) for v in (x, G, scale, bias)))):
      assert driven.rel(got, by_hand) < 1e-5
    assert driven.rel(state["batch_stats"]["phi"], want.phi) < 1e-5
    assert driven.rel(state["backward_state"]["nu_D"], want.nu) < 1e-5
  assert np.linalg.norm(want.nu) > 0.1  # it took part


def test_every_feature_has_unit_mean_square_while_the_warmup_lasts():
  module = _module(groups=2)
  state = jax.jit(module.init)(jax.random.key(0), driven.tokens(0, B, T, D))
  y = driven.step(module, state, 9 * driven.tokens(1, B, T, D), np.ones((B, T, D), np.float32), 0)[0]
  np.testing.assert_allclose(np.mean(np.square(y), (0, 1)), 1.0, rtol=1e-4)


def test_evaluation_without_groups_is_its_affine_map_and_groups_have_none():
  module = PowerNorm(groups=0)
  x = driven.tokens(3, B, T, D)
  state = driven.start(module, x)
  state["batch_stats"] = {"phi": np.abs(driven.tokens(4, D)) + 0.1}
  A, offset = module.as_affine(state)
  by_hand = np.asarray(A, np.float64) * x + np.asarray(offset, np.float64)
  assert driven.rel(jax.jit(module.apply)(state, x), by_hand) < 1e-6
  with pytest.raises(ValueError, match="groups=2.*groups=0"):
    PowerNorm(groups=2).as_affine(state)


@pytest.mark.parametrize("fields, says", [
    (dict(groups=3), "groups=3 must divide the 4"), (dict(divisor="psi"), "divisor='psi' is unknown"),
    (dict(forward_momentum=1.0), "momentum=1.0"), (dict(backward_momentum=-0.1), "momentum=-0.1")])
def test_what_cannot_be_is_refused(fields, says):
  with pytest.raises(ValueError, match=says):
    PowerNorm(**fields).init(jax.random.key(0), np.ones((B, T, D), np.float32))
