"""A linear map whose kernel may be a function of its parameters.

    y = x W + c,    (W, c) = transform(kernel, bias)        layers/kernel_transforms.py

Without a transform it is flax's Dense (inputs = 1) or DenseGeneral, with the same
parameters, draws and results.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import kernel_transforms


class Dense(nn.Module):
  """Sums over the last `inputs` axes of x and makes the axes `features`.

  Attributes:
    features: sizes of the new axes, or of the one new axis.
    inputs: number of axes summed over.
    use_bias: whether there is a bias.
    kernel_transform: a name of layers/kernel_transforms.py; "" is none.
    dtype: dtype of the product; the transform is float32.
    kernel_init, bias_init: of the raw parameters, drawn for [all inputs, all features].
  """

  features: int | tuple[int, ...]
  inputs: int = 1
  use_bias: bool = True
  kernel_transform: str = ""
  dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x):
    transform = kernel_transforms.find(self.kernel_transform)
    made = self.features if isinstance(self.features, tuple) else (self.features,)
    summed = x.shape[x.ndim - self.inputs:]
    flat = math.prod(summed), math.prod(made)
    draw = lambda key, shape: jnp.reshape(self.kernel_init(key, flat), shape)
    kernel = self.param("kernel", draw, (*summed, *made))
    bias = None
    if self.use_bias:
      bias = self.param("bias", lambda key, shape: jnp.reshape(self.bias_init(key, flat[1:]), shape), made)
    if transform is not None:
      kernel_IO, bias_O = transform(self, kernel.reshape(flat), None if bias is None else bias.reshape(-1))
      kernel = kernel_IO.reshape(kernel.shape)
      bias = None if bias is None else bias_O.reshape(made)
    axes = tuple(range(x.ndim - self.inputs, x.ndim)), tuple(range(self.inputs))
    y = jax.lax.dot_general(x.astype(self.dtype), kernel.astype(self.dtype), (axes, ((), ())))
    return y if bias is None else y + bias.astype(self.dtype).reshape((1,) * (y.ndim - len(made)) + made)
