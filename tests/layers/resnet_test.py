"""The residual network: parameters as published, what a block computes, and what is refused."""

import functools

import jax
import numpy as np
import pytest

from layers.mixers.attention import Attention
from layers.norms.batch_norm import BatchNorm
from layers.norms.evonorm import EvoNorm
from layers.placement import placement
from layers.resnet import ResNet
from layers.stack import Stack
from tests.layers import toy


def _model(blocks=1, width=4, norm=BatchNorm, classes=3):
  stack = functools.partial(Stack, (Attention,) * blocks, None, norm, placement("none", blocks))
  return ResNet(classes, width, stack)


@pytest.mark.parametrize("blocks, of_norms, total", [
    (2, 1120, 175_258), (5, 2464, 466_906)])
def test_parameters_are_as_many_as_published(blocks, of_norms, total):
  """Of ResNet-14 and 32 of width 16 on CIFAR-10: those of norms, and all."""
  x = np.zeros((1, 32 * 32, 3), np.float32)
  params = jax.eval_shape(_model(blocks, 16, classes=10).init, jax.random.key(0), x)["params"]
  sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
  assert sum(sizes.values()) == total
  assert sum(size for name, size in sizes.items() if name.endswith("_norm")) == of_norms
  assert sizes["head"] == 650


@pytest.mark.parametrize("norm", [BatchNorm, EvoNorm])
def test_logits_do_not_depend_on_the_other_images(norm):
  model = _model(norm=norm)
  x_BTC = np.random.default_rng(0).standard_normal((3, 16, 1), np.float32)
  params = toy.parameters(model, 1, x_BTC)
  stats = jax.tree.map(lambda s: np.ones(s.shape, s.dtype),
                       jax.eval_shape(model.init, jax.random.key(0), x_BTC).get("batch_stats", {}))
  read = jax.jit(lambda x: model.apply({"params": params, "batch_stats": stats}, x)[0])
  np.testing.assert_allclose(read(x_BTC)[0], read(np.repeat(x_BTC[:1], 3, axis=0))[0], rtol=1e-5, atol=1e-6)
  assert np.max(np.abs(read(x_BTC)[0] - read(x_BTC)[1])) > 1e-3


def _conv(x_BHWC, kernel, stride=1):
  """A convolution by hand, one output position at a time; sides are padded by half the kernel."""
  size, pad = kernel.shape[0], kernel.shape[0] // 2
  padded = np.pad(x_BHWC, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  places = range(0, x_BHWC.shape[1], stride)
  return np.stack([np.stack([np.tensordot(padded[:, i:i + size, j:j + size], kernel, 3) for j in places], 1)
                   for i in places], 1)


def test_logits_are_those_of_the_network_by_hand():
  model, x_BTC = _model(), np.random.default_rng(2).standard_normal((2, 16, 1), np.float32)
  params = toy.parameters(model, 3, x_BTC)
  params |= {name: tree | {"bias": np.abs(tree["bias"])} for name, tree in params.items() if name.endswith("_norm")}
  # A mean below 0 and the biases keep features alive.
  stats = {name: {"mean": np.full_like(tree["bias"], -0.5), "var": np.full_like(tree["bias"], 2.0)}
           for name, tree in params.items() if name.endswith("_norm")}
  def conv(x, name, stride=1):
    y = _conv(x, np.float64(params[name]["kernel"]), stride)
    norm = params[f"{name}_norm"]
    return (y + 0.5) / np.sqrt(2 + 1e-5) * norm["scale"] + norm["bias"]
  relu = lambda x: np.maximum(x, 0)
  x = relu(conv(np.float64(x_BTC).reshape(2, 4, 4, 1), "embedding"))
  for stage in range(3):
    name, stride = f"stage_{stage}_block_0", 1 + (stage > 0)
    y = conv(relu(conv(x, f"{name}_up", stride)), f"{name}_down")
    x = relu(y + (conv(x, f"{name}_shortcut", stride) if stage else x))
  want = x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
  got = jax.jit(lambda x: model.apply({"params": params, "batch_stats": stats}, x)[0])(x_BTC)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert np.max(np.abs(want[0] - want[1])) > 1e-3


@pytest.mark.parametrize("shape, given, says", [
    ((1, 15, 1), {}, "15 pixels are no square"), ((1, 16, 1), {"segment_ids": np.zeros((1, 16), np.int32)}, "segment_ids")])
def test_what_is_no_whole_square_image_is_refused(shape, given, says):
  with pytest.raises(ValueError, match=says):
    jax.eval_shape(functools.partial(_model().init, **given), jax.random.key(0), np.zeros(shape, np.float32))
