"""Unified Normalization against a float64 loop over steps: smoothing, outliers, both directions."""

import jax
import numpy as np
import pytest

from layers.convert.fuse_affine import fuse
from layers.norms.unified_norm import UnifiedNorm
from tests.layers.norms import driven

B, T, D, EPS = 2, 3, 4, 1e-5
M = 0.9


class _ByHand:
  """The card's algorithm."""

  def __init__(self, n, k, warmup, ramp, filtration):
    self.n, self.k, self.warmup, self.ramp, self.filtration = n, k, warmup, ramp, filtration
    self.X, self.Z, self.v, self.e = np.zeros((n, D)), np.zeros((k, D)), np.ones(D), np.zeros(D)
    self.t, self.skips = 0, 0

  def step(self, x, G, g, b):
    self.t += 1
    t, n, k = self.t, self.n, self.k
    s, skip, spread = np.mean(x**2, (0, 1)), n <= 1, None
    if n > 1:
      spread = np.var(np.sqrt(self.X), ddof=1)
    self.X[t % n] = s
    if t >= self.warmup and self.filtration and n > 1:
      if np.any(self.X.mean(0) - self.X.prod(0) ** (1 / n) > spread * n):
        self.X[t % n], skip = self.v, True
        self.skips += 1
    early = t <= n or t < self.warmup or skip
    var = s if early else self.X.prod(0) ** (1 / n)
    r = np.ones(D)
    if not (t <= max(self.ramp, self.warmup) or skip):
      r = np.clip(np.sqrt(var + EPS) / np.sqrt(self.v + EPS), 0.2, 5)
    z = x / np.sqrt(var + EPS)
    self.v = M * self.v + (1 - M) * var
    gg = G * g * r
    gz = np.mean(gg * z, (0, 1))
    self.Z[t % k] = self.e if skip else gz
    c = gz if (t <= k or t < self.warmup or skip) else self.Z.mean(0)
    self.e = M * self.e + (1 - M) * c
    dx = (gg - (c if skip else self.e) * z) / np.sqrt(var + EPS)
    return g * z + b, dx, np.sum(G * r * z, (0, 1)), np.sum(G, (0, 1)), r


@pytest.mark.parametrize("n, k, filtration", [(3, 2, False), (2, 3, True), (1, 1, False)])
def test_training_is_the_algorithm_step_by_step(n, k, filtration):
  want = _ByHand(n, k, 4, 6, filtration)
  module = UnifiedNorm(forward_window=n, backward_window=k, warmup=4, ramp=6, momentum=M,
                       filtration=filtration, train=True)
  state = driven.start(module, driven.tokens(0, B, T, D))
  scale, bias = (np.asarray(state["params"][name], np.float64) for name in ("scale", "bias"))
  ratios = []
  for t in range(9):
    size = 30.0 if t == 6 else 1 + 0.2 * t  # an outlier after the warm-up
    x, G = size * driven.tokens(2 * t, B, T, D), driven.tokens(2 * t + 1, B, T, D)
    y, (params, dx), state = driven.step(module, state, x, G, t)
    *by_hand, r = want.step(*(np.asarray(v, np.float64) for v in (x, G, scale, bias)))
    ratios.append(r)
    for got, expected in zip((y, dx, params["scale"], params["bias"]), by_hand):
      assert driven.rel(got, expected) < 2e-5, t
    stats, own = state["batch_stats"], state["backward_state"]
    for got, expected in ((stats["var"], want.v), (stats["rows"], want.X),
                          (own["e_D"], want.e), (own["rows_WD"], want.Z)):
      assert driven.rel(got, expected) < 2e-5, t
    assert stats["skips"] == want.skips
  assert (want.skips > 0) == filtration  # the outlier was one
  assert np.any(np.stack(ratios) != 1) == (n > 1)


def test_evaluation_folds_into_the_map_that_reads_it():
  module, x = UnifiedNorm(), driven.tokens(3, B, T, D)
  state = driven.start(module, x)
  state["batch_stats"] = {"var": np.abs(driven.tokens(4, D)) + 0.1}
  kernel, bias = driven.tokens(5, D, 5), driven.tokens(6, 5)
  fused_kernel, fused_bias = fuse(kernel, bias, *module.as_affine(state))
  want = np.asarray(jax.jit(module.apply)(state, x)) @ kernel + bias
  assert driven.rel(x @ np.asarray(fused_kernel) + np.asarray(fused_bias), want) < 1e-6


@pytest.mark.parametrize("fields, says", [
    (dict(forward_window=0), "forward_window=0 must be at least 1"), (dict(backward_window=0), "backward_window=0"),
    (dict(momentum=1.5), "momentum=1.5")])
def test_what_cannot_be_is_refused(fields, says):
  with pytest.raises(ValueError, match=says):
    UnifiedNorm(**fields).init(jax.random.key(0), np.ones((B, T, D), np.float32))
