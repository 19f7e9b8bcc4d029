"""RepBN and PRepBN: the equations, the schedule, the end of the change, fusion."""

import jax
import numpy as np
import pytest

from layers.convert.fuse_affine import fuse
from layers.norms.prepbn import PRepBN, RepBN, share_of_inner
from tests.layers.norms import driven

B, T, D = 2, 4, 3


def _ln(x, scale, bias, eps=1e-6):
  return scale * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) + bias


def _rms(x, scale, bias, eps=1e-6):
  return scale * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps)


def _rep(x, scale, bias, shortcut, eps=1e-5):
  return scale * (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + eps) + bias + shortcut * x


@pytest.mark.parametrize("inner", ["layer", "rms"])
def test_training_is_the_mixture_of_every_step(inner):
  module = PRepBN(inner=inner, warmup=2, total=4, train=True)
  x = 2 * driven.tokens(0, B, T, D)
  first = state = driven.start(module, x)
  p = jax.tree.map(lambda v: np.asarray(v, np.float64), state["params"])
  own = {"layer": _ln, "rms": _rms}[inner]
  shares = [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
  for t, lam in enumerate(shares):
    x, G = driven.tokens(t, B, T, D), driven.tokens(t + 50, B, T, D)
    mixed = lambda x: (lam * own(x, p["scale"], p.get("bias")) + (1 - lam) * _rep(x, **p["rep"]))
    y, (_, dx), state = driven.step(module, state, x, G, t)
    assert driven.rel(y, mixed(x.astype(np.float64))) < 1e-5
    assert driven.rel(dx, driven.difference(mixed, x, G)) < 2e-5
    moved = np.any(state["batch_stats"]["rep"]["mean"] != first["batch_stats"]["rep"]["mean"])
    assert moved == (t >= 2)  # BN learns nothing while the norm is LN alone


def test_the_share_falls_from_one_to_zero_in_a_line():
  got = [float(share_of_inner(t, 2, 4)) for t in range(9)]
  assert got == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0]


@pytest.mark.parametrize("cls", [RepBN, PRepBN])
def test_evaluation_is_rep_bn_at_any_step_and_folds_into_the_map_that_reads_it(cls):
  module, x = cls(), driven.tokens(2, B, T, D)
  state = driven.start(module, x)
  stats = {"mean": driven.tokens(3, D), "var": np.abs(driven.tokens(4, D)) + 0.1}
  state["batch_stats"] = stats if cls is RepBN else {"rep": stats}
  got = np.asarray(jax.jit(module.apply)(state, x))
  p = state["params"] if cls is RepBN else state["params"]["rep"]
  want = p["scale"] * (x.astype(np.float64) - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) + p["bias"]
  assert driven.rel(got, want + p["shortcut"] * x) < 1e-6
  kernel = driven.tokens(5, D, 5)
  fused_kernel, fused_bias = fuse(kernel, 0.0, *module.as_affine(state))
  assert driven.rel(x @ np.asarray(fused_kernel) + np.asarray(fused_bias), got @ kernel) < 1e-5


@pytest.mark.parametrize("fields, says", [
    (dict(total=0), "total=0 must be at least 1"), (dict(inner="batch"), "inner='batch' is unknown"),
    (dict(momentum=-1.0), "momentum=-1.0")])
def test_what_cannot_be_is_refused(fields, says):
  with pytest.raises(ValueError, match=says):
    PRepBN(**fields).init(jax.random.key(0), np.ones((B, T, D), np.float32))
