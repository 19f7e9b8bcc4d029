"""The residual network of small images: three stages of k basic blocks, 6 k + 2 layers deep.

    block(x) = relu(N(conv(relu(N(conv(x))))) + shortcut(x))        conv of 3 x 3, N the norm
    shortcut = x, or N(conv 1 x 1 of x) where the shape changes

Stage s = 0, 1, 2 has 2^s W features; the first block of stages 1 and 2 halves the sides.
Then the mean over positions and a head. A norm that is its own activation (a field
`bends`, as EvoNorm's) takes the place of norm and relu, and is an affine map before the sum.

References: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016,
section 4.2, with projections in shortcuts; initialisation (normal, variance 2 / fan in)
as in Frankle, Schwab and Morcos, "Training BatchNorm and Only BatchNorm", 2020.
"""

from collections.abc import Callable
import math

import flax.linen as nn
import jax.numpy as jnp

from layers.dense import Dense

# Dims: B batch, T pixels, H height, W width, C features.

STAGES = 3


class ResNet(nn.Module):
  """Class logits of square images, given as rows of pixels.

  Attributes:
    classes: number of classes.
    width: features of the first stage.
    stack: of it the depth, k blocks per stage, and the norm are used, and nothing else.
    dtype: dtype of the convolutions; logits are float32.
  """

  classes: int
  width: int
  stack: Callable[..., nn.Module]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BTC, states=None, segment_ids=None):
    """Returns (logits [B, classes] in float32, None): a class is of the whole image.

    Raises:
      ValueError: states or segment_ids are given, or the pixels are no square.
    """
    if states is not None or segment_ids is not None:
      raise ValueError("a classifier reads one whole image per row; it takes neither states nor segment_ids.")
    B, T, C = x_BTC.shape
    side = math.isqrt(T)
    if side * side != T:
      raise ValueError(f"{T} pixels are no square image; take config.task.layout='pixels' and square images.")
    of_stack = self.stack(parent=None)
    blocks, norm = len(of_stack.placement.pre), of_stack.norm
    x = _act(self._conv(x_BTC.reshape(B, side, side, C), self.width, 3, 1, "embedding"), norm, "embedding_norm")
    for stage in range(STAGES):
      for block in range(blocks):
        stride = 2 if stage and not block else 1
        x = self._block(x, norm, self.width * 2**stage, stride, f"stage_{stage}_block_{block}")
    x_BC = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    return Dense(self.classes, name="head")(x_BC), None

  def _conv(self, x, features, size, stride, name):
    draw = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    return nn.Conv(features, (size, size), (stride, stride), padding=[(size // 2, size // 2)] * 2, use_bias=False,
                   dtype=self.dtype, kernel_init=draw, name=name)(x)

  def _block(self, x, norm, features, stride, name):
    y = _act(self._conv(x, features, 3, stride, f"{name}_up"), norm, f"{name}_up_norm")
    y = _plain(norm, f"{name}_down_norm")(self._conv(y, features, 3, 1, f"{name}_down"))
    if stride > 1 or x.shape[-1] != features:
      x = _plain(norm, f"{name}_shortcut_norm")(self._conv(x, features, 1, stride, f"{name}_shortcut"))
    return nn.relu(x + y)


def _act(x, norm, name):
  """Applies the norm and the activation, which may be one."""
  y = norm(name=name)(x)
  return y if _bends(norm) else nn.relu(y)


def _plain(norm, name):
  """Returns the norm without activation."""
  return norm(bends=False, name=name) if _bends(norm) else norm(name=name)


def _bends(norm):
  return hasattr(norm(parent=None), "bends")
