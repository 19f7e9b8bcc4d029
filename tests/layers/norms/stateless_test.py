"""CRMSNorm, Dynamic Tanh, TanhNorm, GroupNorm and InstanceNorm against float64, with their limits."""

import math

import jax
import numpy as np
import pytest

from layers.norms.crms_norm import CRMSNorm
from layers.norms.dynamic_tanh import DynamicTanh
from layers.norms.group_norm import GroupNorm
from layers.norms.instance_norm import InstanceNorm
from layers.norms.layer_norm import LayerNorm, ShortcutLayerNorm
from layers.norms.rms_norm import rms_norm
from layers.norms.tanh_norm import TanhNorm, keep_ratio
from tests.layers.norms import driven

B, T, D = 2, 3, 4


def _whole(u):
  return np.concatenate([u, -u.sum(-1, keepdims=True)], -1)


def _centred(x, axes, eps=1e-5):
  return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def _groups(x):
  return _centred(x.reshape(B, T, 2, -1), (1, 3)).reshape(x.shape)


LAYERS = [
    (CRMSNorm(), lambda x, p: x / np.sqrt(np.mean(_whole(x) ** 2, -1, keepdims=True) + 1e-6)),
    (DynamicTanh(), lambda x, p: p["scale"] * np.tanh(p["alpha"] * x) + p["bias"]),
    (TanhNorm(), lambda x, p: 1 + 0.2 * np.tanh(x)),
    (GroupNorm(groups=2), lambda x, p: p["scale"] * _groups(x) + p["bias"]),
    (InstanceNorm(), lambda x, p: p["scale"] * _centred(x, (1,)) + p["bias"])]


@pytest.mark.parametrize("module, by_hand", LAYERS, ids=lambda v: type(v).__name__)
def test_a_layer_is_its_equation_with_its_gradient(module, by_hand):
  x, G = 2 * driven.tokens(0, B, T, D), driven.tokens(1, B, T, D)
  state = driven.start(module, x)
  p = {k: np.asarray(v, np.float64) for k, v in state.get("params", {}).items()}
  y, (params, dx), _ = driven.step(module, state, x, G, 0)
  assert driven.rel(y, by_hand(x.astype(np.float64), p)) < 2e-6
  assert driven.rel(dx, driven.difference(lambda x: by_hand(x, p), x, G)) < 2e-5
  for name in p:
    want = driven.difference(lambda v: by_hand(x.astype(np.float64), p | {name: v}), p[name], G)
    assert driven.rel(params[name], want) < 2e-5, name


def test_crms_norm_is_rms_norm_of_the_zero_sum_vector():
  u = driven.tokens(2, B, T, D)
  np.testing.assert_allclose(jax.jit(CRMSNorm().apply)({}, u), jax.jit(rms_norm)(_whole(u))[..., :-1], rtol=1e-5)


def test_dynamic_tanh_stays_within_its_gain():
  x = 1e4 * driven.tokens(3, B, T, D)
  state = driven.start(DynamicTanh(), x)
  y = np.asarray(jax.jit(DynamicTanh().apply)(state, x))
  # One rounding of float32 may lie on the far side of the bound.
  assert np.all(np.abs(y - state["params"]["bias"]) <= np.abs(state["params"]["scale"]) * (1 + 1e-6) + 1e-6)


def test_tanh_norm_is_one_at_zero_and_stays_within_alpha():
  y = np.asarray(jax.jit(TanhNorm().apply)({}, np.linspace(-5, 5, 101, dtype=np.float32)[None]))[0]
  assert y[50] == 1 and np.all((0.8 < y) & (y < 1.2)) and np.all(np.diff(y) > 0)


def test_the_share_of_routed_tokens_falls_along_a_cosine_between_its_bounds():
  got = [keep_ratio(layer, 32, 0.5) for layer in range(32)]
  raw = [0.5 * math.cos(math.pi * layer / 31) + 0.5 for layer in range(32)]
  assert got == [1.0 if r > 0.85 else max(r, 0.15) for r in raw]
  assert got[0] == 1 and got[-1] == 0.15 and raw[15] in got
  with pytest.raises(ValueError, match="layer=4 must be from 0 to depth - 1 = 3"):
    keep_ratio(4, 4, 0.5)


def test_one_group_and_one_position_is_layer_norm():
  x = driven.tokens(4, B, 1, D)
  state = driven.start(GroupNorm(groups=1), x)
  np.testing.assert_allclose(jax.jit(GroupNorm(groups=1).apply)(state, x),
                             jax.jit(LayerNorm(eps=1e-5).apply)(state, x), rtol=1e-5, atol=1e-6)


def test_a_shortcut_adds_a_multiple_of_x_to_layer_norm():
  x = driven.tokens(4, B, 1, D)
  state = driven.start(ShortcutLayerNorm(shortcut_init=0.7), x)
  plain = {"params": {name: state["params"][name] for name in ("scale", "bias")}}
  want = jax.jit(LayerNorm().apply)(plain, x) + state["params"]["shortcut"] * x
  np.testing.assert_allclose(jax.jit(ShortcutLayerNorm().apply)(state, x), want, rtol=1e-5, atol=1e-6)


def test_a_group_per_feature_is_instance_norm_also_of_images():
  x = driven.tokens(5, B, 2, 3, D)
  state = driven.start(InstanceNorm(), x)
  np.testing.assert_allclose(jax.jit(GroupNorm(groups=D).apply)(state, x),
                             jax.jit(InstanceNorm().apply)(state, x), rtol=1e-5, atol=1e-6)


def test_groups_that_do_not_divide_the_width_are_refused():
  with pytest.raises(ValueError, match="groups=3 must divide the 4 features"):
    GroupNorm(groups=3).init(jax.random.key(0), np.ones((B, T, D), np.float32))
