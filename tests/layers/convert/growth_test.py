"""What growth keeps of the small model: its layers in order, and where promised its function."""

import functools

import jax
import numpy as np
import pytest

from layers.channel.glu import GLU
from layers.channel.mlp import MLP
from layers.convert import growth
from layers.lm import LM
from layers.mixers.attention import Attention
from layers.norms.rms_norm import RMSNorm
from layers.placement import placement
from layers.stack import Stack
from research import parameters
from tests.layers import toy

VOCAB, D, n, L = 7, 8, 2, 4
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 5))


def _model(depth, place="pre", width=D, heads=2, hidden=12, channel=GLU, mixers=None):
  attention = functools.partial(Attention, heads=heads, head_dim=4, max_tokens=8)
  stack = functools.partial(Stack, (mixers or (attention,)) * (depth if mixers is None else depth // len(mixers)),
                            functools.partial(channel, hidden=hidden), RMSNorm, placement(place, depth))
  return LM(VOCAB, width, stack)


def _runs(model):
  return model.stack(parent=None).runs()


def _grown(params, small, big, operator, **more):
  stack, layers = params["stack"], growth.layers_of(params["stack"], _runs(small))
  kept = {k: v for k, v in stack.items() if k.endswith("norm")}
  made = growth.deepen(layers, len(big.stack(parent=None).mixers), operator, **more)
  return {**params, "stack": kept | growth.stack_of(made, _runs(big))}


def _logits(model, params):
  return jax.jit(lambda params: model.apply({"params": params}, TOKENS)[0])(params)


SMALL, BIG = _model(n), _model(L)
PARAMS = toy.parameters(SMALL, 1, TOKENS)


def test_stacked_layers_are_the_old_ones_over_and_over():
  got = growth.layers_of(_grown(PARAMS, SMALL, BIG, "stack")["stack"], _runs(BIG))
  old = growth.layers_of(PARAMS["stack"], _runs(SMALL))
  for i, layer in enumerate(got):
    jax.tree.map(np.testing.assert_array_equal, layer, old[i % n])


def test_interpolated_layers_are_each_old_one_in_a_row():
  got = growth.layers_of(_grown(PARAMS, SMALL, BIG, "interpolate")["stack"], _runs(BIG))
  old = growth.layers_of(PARAMS["stack"], _runs(SMALL))
  for i, layer in enumerate(got):
    jax.tree.map(np.testing.assert_array_equal, layer, old[i // (L // n)])


def test_a_grown_tree_is_the_tree_of_the_deep_model():
  want = jax.eval_shape(BIG.init, jax.random.key(0), TOKENS)["params"]
  got = _grown(PARAMS, SMALL, BIG, "stack")
  jax.tree.map(lambda g, w: np.testing.assert_equal(g.shape, w.shape), got, want)


@pytest.mark.parametrize("place, channel", [("pre", GLU), ("sandwich", MLP)])
def test_zero_growth_leaves_every_logit_as_it_was(place, channel):
  small, big = _model(n, place, channel=channel), _model(L, place, channel=channel)
  params = toy.parameters(small, 2, TOKENS)
  grown = _grown(params, small, big, "zero")
  np.testing.assert_allclose(_logits(big, grown), _logits(small, params), rtol=1e-6, atol=1e-6)
  # And it can learn: some gradient reaches every new layer.
  slopes = jax.jit(jax.grad(lambda p: (big.apply({"params": p}, TOKENS)[0] ** 2).sum()))(grown)
  for layer in growth.layers_of(slopes["stack"], _runs(big))[n:]:
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(layer))


def test_stacking_does_change_the_function():
  got = _logits(BIG, _grown(PARAMS, SMALL, BIG, "stack"))
  assert np.abs(got - _logits(SMALL, PARAMS)).max() > 0.1


def test_an_untrained_mix_is_stacking_and_its_layers_are_sums():
  layers = growth.layers_of(PARAMS["stack"], _runs(SMALL))
  mix = growth.first_mix(layers, L)
  jax.tree.map(np.testing.assert_array_equal, growth.deepen(layers, L, "learn", mix=mix),
               growth.deepen(layers, L, "stack"))
  half = growth.mixed(layers, jax.tree.map(lambda m: 0 * m + 0.5, mix))[L - 1]
  jax.tree.map(lambda h, a, b: np.testing.assert_allclose(h, (a + b) / 2, rtol=1e-6), half, *layers)


def test_random_growth_keeps_the_old_layers_and_draws_the_rest():
  fresh = growth.layers_of(toy.parameters(BIG, 3, TOKENS)["stack"], _runs(BIG))
  layers = growth.layers_of(PARAMS["stack"], _runs(SMALL))
  got = growth.deepen(layers, L, "random", fresh=fresh)
  jax.tree.map(np.testing.assert_array_equal, got, [*layers, *fresh[n:]])


def test_a_wide_model_computes_what_the_narrow_one_did():
  wide = _model(n, width=2 * D, heads=4, hidden=24)
  shapes = jax.eval_shape(wide.init, jax.random.key(0), TOKENS)["params"]
  def tiled(path, leaf, shape):
    role = parameters.role(path, leaf)
    inputs = [i for i, axis in enumerate(role.axes) if role.is_matrix and axis in role.inputs]
    return growth.widen(leaf, shape.shape, tuple(inputs))
  params = jax.tree_util.tree_map_with_path(tiled, PARAMS, shapes)
  np.testing.assert_allclose(_logits(wide, params), _logits(SMALL, PARAMS), rtol=2e-5, atol=2e-5)


def test_patterns_grow_by_whole_periods():
  first, second = (functools.partial(Attention, heads=h, head_dim=4, max_tokens=8) for h in (2, 1))
  small, big = (_model(depth, mixers=(first, second)) for depth in (n, L))
  params = toy.parameters(small, 4, TOKENS)
  got = growth.layers_of(_grown(params, small, big, "stack")["stack"], _runs(big))
  assert [layer["mixer"]["query"]["kernel"].shape[1] for layer in got] == [2, 1, 2, 1]


def test_sizes_that_do_not_divide_are_refused_with_the_numbers():
  layers = growth.layers_of(PARAMS["stack"], _runs(SMALL))
  with pytest.raises(ValueError, match="depth=5 must be a multiple of the 2 layers it grows from; take 4"):
    growth.deepen(layers, 5, "stack")
  with pytest.raises(ValueError, match="operator='stak' is unknown; choose from stack, "):
    growth.deepen(layers, 4, "stak")
  with pytest.raises(ValueError, match=r"shape=\(6,\) must be a multiple, axis by axis, of the shape \(4,\)"):
    growth.widen(np.ones(4), (6,), ())
  with pytest.raises(ValueError, match="the mixer has no map called out or down"):
    growth.silent({"mixer": {"kernel": np.ones((2, 2))}})
