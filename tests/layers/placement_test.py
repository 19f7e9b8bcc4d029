"""Every row of the placement table against the block formula, redone in float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import context
from layers.norms.rms_norm import RMSNorm
from layers.placement import Placement, TABLE, placement
from layers.stack import Block, Stack
from tests.layers import toy

B, T, D, L = 2, 3, 4, 3
NO, ALL = (False,) * L, (True,) * L

# Written from the papers, not from the table: what each scheme does at three layers.
ROWS = {
    "pre": dict(pre=ALL, final=True),
    "post": dict(post=ALL),
    "sandwich": dict(pre=ALL, out=ALL, final=True),
    "peri": dict(pre=ALL, out=ALL, embed=True, final=True),
    "output_only": dict(out=ALL, final=True),
    "mix": dict(pre=ALL, final=True),
    "mix:1": dict(post=(True, False, False), pre=(False, True, True), final=True),
    "mix:2": dict(post=(True, True, False), pre=(False, False, True), final=True),
    "layernorm_scaling": dict(pre=ALL, in_scale=(1.0, 2**-0.5, 3**-0.5), final=True),
    "deepnorm": dict(post=ALL, alpha=6**0.25),
    "none": dict(),
}


def _tokens(seed):
  return np.random.default_rng(seed).standard_normal((B, T, D), np.float32)


@functools.cache
def _run(name):
  """Returns (drawn parameters, output for _tokens(0)) of a stack of toy layers."""
  stack = Stack((toy.Mean,) * L, toy.Tanh, toy.Soft, placement(name, L), scan=False)
  params = toy.parameters(stack, 1, _tokens(0))
  return params, jax.jit(stack.apply)({"params": params}, _tokens(0))[0]


def _by_hand(params, x, *, pre=NO, out=NO, post=NO, in_scale=(1.0,) * L, alpha=1.0,
             embed=False, final=False):
  """The formula, literally, in float64."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  norm = lambda p, x: p["scale"] * x / (1 + np.abs(x).mean(-1, keepdims=True))
  mixer = lambda p, h: (np.cumsum(h, 1) / np.arange(1, T + 1)[:, None]) @ p["kernel"]
  channel = lambda p, h: np.tanh(h) @ p["kernel"]
  x = np.asarray(x, np.float64)
  if embed:
    x = norm(params["embed_norm"], x)
  for layer in range(L):
    block = params[f"layers_{layer}_to_{layer}"]["block_0"]
    for name, f in (("mixer", mixer), ("channel", channel)):
      h = norm(block[f"{name}_pre_norm"], x) if pre[layer] else x
      y = f(block[name], in_scale[layer] * h)
      y = norm(block[f"{name}_out_norm"], y) if out[layer] else y
      x = alpha * x + y
      x = norm(block[f"{name}_post_norm"], x) if post[layer] else x
  return norm(params["final_norm"], x) if final else x


@pytest.mark.parametrize("name", ROWS)
def test_a_stack_computes_the_formula_of_its_row(name):
  params, y = _run(name)
  want = _by_hand(params, _tokens(0), **ROWS[name])
  assert np.linalg.norm(y - want) < 3e-6 * np.linalg.norm(want)


@pytest.mark.parametrize("name", ROWS)
def test_a_model_has_the_norms_of_its_row_and_no_others(name):
  row = ROWS[name]
  params = _run(name)[0]
  want = {(f"layers_{l}_to_{l}", f"{sublayer}_{place}_norm")
          for place in ("pre", "out", "post") for l in range(L) if row.get(place, NO)[l]
          for sublayer in ("mixer", "channel")}
  got = {(layer, name) for layer, node in params.items() if "block_0" in node
         for name in node["block_0"] if name.endswith("norm")}
  assert got == want
  assert ("embed_norm" in params, "final_norm" in params) == (
      row.get("embed", False), row.get("final", False))


def test_every_row_of_the_table_is_tested():
  assert set(TABLE) <= set(ROWS)


def test_layernorm_scaling_divides_by_the_root_of_the_layer_counted_from_one():
  scale = placement("layernorm_scaling", 9).in_scale
  assert scale[0] == 1.0 and scale[3] == 0.5
  np.testing.assert_allclose(np.square(scale) * np.arange(1, 10), 1.0, rtol=1e-15)


def test_layernorm_scaling_of_one_layer_is_pre():
  assert placement("layernorm_scaling", 1) == placement("pre", 1)


@pytest.mark.parametrize("depth, post_layers", [(1, 0), (3, 0), (4, 1), (7, 1), (12, 3)])
def test_mix_without_a_number_is_a_quarter_of_the_layers(depth, post_layers):
  assert placement("mix", depth) == placement(f"mix:{post_layers}", depth)
  assert sum(placement("mix", depth).post) == post_layers


def test_mix_is_post_below_and_pre_above():
  for count in range(6):
    place = placement(f"mix:{count}", 5)
    assert place.post == (True,) * count + (False,) * (5 - count)
    assert all(pre != post for pre, post in zip(place.pre, place.post))


def test_mix_of_no_layers_is_pre_and_of_all_is_post_with_a_final_norm():
  assert placement("mix:0", 5) == placement("pre", 5)
  post = placement("post", 5)
  assert placement("mix:5", 5) == Placement(
      post.pre, post.out, post.post, post.in_scale, post.alpha, final_norm=True)


def test_sandwich_is_peri_without_the_norm_of_the_embeddings():
  peri = placement("peri", 4)
  assert peri.embed_norm
  assert placement("sandwich", 4) == Placement(
      peri.pre, peri.out, peri.post, peri.in_scale, peri.alpha)


@pytest.mark.parametrize("depth", [1, 6, 100])
def test_deepnorm_has_the_decoder_constants(depth):
  place = placement("deepnorm", depth)
  np.testing.assert_allclose(place.alpha, (2 * depth) ** 0.25)
  np.testing.assert_allclose(place.branch_gain, (8 * depth) ** -0.25)


@pytest.mark.parametrize("name", sorted(set(TABLE) - {"deepnorm"}))
def test_only_deepnorm_scales_the_stream_or_the_start(name):
  place = placement(name, 5)
  assert place.alpha == (1.0,) * 5 and place.branch_gain == 1.0


# eps far below the mean squares at hand, so that the laws hold to rounding.
_unit = functools.partial(RMSNorm, eps=1e-12, gain=False)
_block = Block(toy.Mean, None, _unit, pre=True, out=True)
_one, _start = np.float32(1.0), context.LayerContext(np.int32(0), {})


@jax.jit
def _peri_block(x, kernel):
  """Returns (what the sublayer adds, gradient of a bent sum of the block's output in kernel)."""
  def bent(kernel):
    y = _block.apply({"params": {"mixer": {"kernel": kernel}}}, x, _start, None, _one, _one)[0]
    return jnp.sum(jnp.sin(3 * y)), y - x
  grad, increment = jax.grad(bent, has_aux=True)(kernel)
  return increment, grad



@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_peri_adds_unit_mean_square_whatever_the_output_matrix(scale):
  kernel = np.random.default_rng(2).standard_normal((D, D)).astype(np.float32)
  x = 10 * _tokens(3)
  increment = _peri_block(x, scale * kernel)[0]
  np.testing.assert_allclose(np.mean(np.square(increment), -1), 1.0, rtol=2e-5)
  np.testing.assert_allclose(increment, _peri_block(x, kernel)[0], atol=2e-5)


def test_peri_gradient_of_the_output_matrix_is_orthogonal_to_it():
  kernel = np.random.default_rng(4).standard_normal((D, D)).astype(np.float32)
  grad = np.asarray(_peri_block(_tokens(5), kernel)[1], np.float64)
  cosine = np.vdot(kernel, grad) / np.linalg.norm(kernel) / np.linalg.norm(grad)
  assert np.linalg.norm(grad) > 0.1 and abs(cosine) < 1e-6


@pytest.mark.parametrize("name, depth, rule", [
    ("before", 4, "is not a row of the table; choose from pre, post"),
    ("pre:1", 4, "is not a row"),
    ("pre:", 4, "is not a row"),
    ("", 4, "is not a row"),
    ("mix:", 4, "whole number from 0 to depth=4"),
    ("mix:9", 4, "whole number from 0 to depth=4"),
    ("mix:-1", 4, "whole number from 0 to depth=4"),
    ("mix:1.5", 4, "whole number from 0 to depth=4"),
    ("pre", 0, "depth=0 must be at least 1"),
])
def test_what_is_no_row_is_refused(name, depth, rule):
  with pytest.raises(ValueError, match=rule) as refusal:
    placement(name, depth)
  assert "\n" not in str(refusal.value)
