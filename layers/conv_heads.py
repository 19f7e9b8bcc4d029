"""Projection to heads through a short convolution: how recurrences make q, k and v.

    y_t = f(sum_{w=0}^{W-1} c_w (P x)_{t-w})        split into H heads

W = 0 leaves the convolution out. The parameters are those of a bias-free Dense
called `name` and, with a convolution, of a ShortConv called `name`_conv.

Reference: Gu and Dao, "Mamba", 2023 (convolution and silu); Yang et al., "Parallelizing
Linear Transformers with the Delta Rule over Sequence Length", 2024 (on q, k and v).
"""

from einops import rearrange
import jax.numpy as jnp

from layers.dense import Dense
from layers.short_conv import ShortConv

MAX_CONV = 64  # tokens; each is a multiplication of its own in the program


def check(conv: int):
  """Raises ValueError unless a convolution of `conv` tokens is a short one, or none."""
  if not 0 <= conv <= MAX_CONV:
    raise ValueError(f"conv={conv} tokens must lie between 0 (none) and {MAX_CONV}; "
                     "the convolution is a short one.")


def init_state(batch: int, conv: int, dtype, widths: dict[str, int]):
  """Returns {name: the conv - 1 zero inputs before the first}; {} without convolution."""
  if not conv:
    return {}
  return {name: jnp.zeros((batch, conv - 1, width), dtype) for name, width in widths.items()}


def project(x_BTD, name, heads, width, *, conv, past, segment_ids, dtype, activation):
  """Runs inside a compact method, which comes to own the parameters.

  Args:
    x_BTD: tokens.
    name: of the projection.
    heads, width: H and K.
    conv: W, in tokens.
    past: dict with the inputs that came before, under `name`; {} is none.
    segment_ids: of the tokens, or None.
    dtype: of the product.
    activation: f.

  Returns:
    (y_BTHK, {name: inputs for the tokens that follow}, {} without convolution).
  """
  y_BTF = Dense(heads * width, use_bias=False, dtype=dtype, name=name)(x_BTD)
  final = {}
  if conv:
    y_BTF, final[name] = ShortConv(conv, name=f"{name}_conv")(y_BTF, past.get(name), segment_ids)
  return rearrange(activation(y_BTF), "b t (h k) -> b t h k", h=heads), final
