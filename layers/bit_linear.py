"""A linear map with weights in {-1, 0, 1} and 8-bit activations, trained straight through.

With x normalised, w the weight the optimizer sees and round half to even:

    xq = clip(round(127 x / m), -128, 127) m / 127        m = max(max_i |x_i|, 1e-5) per token
    wq = clip(round(w / s), -1, 1) s                      s = max(mean |w|, 1e-5) per matrix
    y = xq wq,      dx = dy wq^T,      dw = xq^T dy

The gradient takes both roundings for the identity and both scales for constants. The
product is summed over whole numbers, exactly, and scaled once.

Reference: Zhu et al., "Scalable MatMul-free Language Modeling", 2024, section 3.2; Ma et
al., "The Era of 1-bit LLMs", 2024. Departure: weights start as Flax starts them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers.dense import product
from layers.norms.rms_norm import RMSNorm

# Dims: D inputs, F outputs.


def quantize_activations(x):
  """Returns (whole numbers in [-128, 127], step), x near their product; one step per token."""
  step = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-5) / 127
  return jnp.clip(jnp.round(x / step), -128, 127), step


def quantize_weights(w_DF):
  """Returns (-1, 0 or 1 per weight, scale), w near their product."""
  scale = jnp.maximum(jnp.mean(jnp.abs(w_DF)), 1e-5)
  return jnp.clip(jnp.round(w_DF / scale), -1, 1), scale


@jax.custom_vjp
def bit_product(x, w_DF):
  """Returns x w with both sides quantised, in float32, differentiated as the file says."""
  (whole, step), (sign_DF, scale) = quantize_activations(x), quantize_weights(w_DF)
  # Exact at any matmul precision: bfloat16 holds whole numbers up to 256, float32 their sums up to 2^24.
  return (whole @ sign_DF) * step * scale


def _bit_product_backward(kept, dy):
  (whole, step), (sign_DF, scale) = quantize_activations(kept[0]), quantize_weights(kept[1])
  return jax.vjp(product, whole * step, sign_DF * scale)[1](dy)


bit_product.defvjp(lambda x, w_DF: (bit_product(x, w_DF), (x, w_DF)), _bit_product_backward)


class BitLinear(nn.Module):
  """The map behind its RMSNorm; without bias.

  Attributes:
    features: F.
    ternary: whether anything is rounded; False is the same layer in full precision.
    dtype: dtype of the result, and of the product where nothing is rounded.
  """

  features: int
  ternary: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    # Statistics and steps of the rounding come from float32, whatever the dtype.
    x = RMSNorm(eps=1e-8, name="norm")(x.astype(jnp.float32))
    w_DF = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
    if self.ternary:
      return bit_product(x, w_DF).astype(self.dtype)
    return product(x.astype(self.dtype), w_DF.astype(self.dtype))
