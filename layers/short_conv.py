"""Short causal depthwise convolution: each channel mixes its last few tokens.

    y_t = sum_{w=0}^{W-1} c_w x_{t-w}          one filter c of width W per channel

Tokens before the sequence, and tokens of another segment, count as zero. The
state is the last W-1 inputs, so a sequence may be cut anywhere.

Reference: the token shift that linear recurrences put before their keys, e.g.
Gu and Dao, "Mamba", 2023, and Yang et al., "Gated Delta Networks", 2024.
"""

import flax.linen as nn
import jax.numpy as jnp

from layers import segments


def short_conv(x_BTF, filter_WF, past_BPF=None, segment_ids_BT=None):
  """Convolves along T.

  Args:
    x_BTF: inputs.
    filter_WF: row w weighs the input w tokens back.
    past_BPF: the P = W-1 inputs before the first, oldest first; zeros if None.
      They belong to the first segment.
    segment_ids_BT: tokens mix only within equal ids.

  Returns:
    (y_BTF, past_BPF for the tokens that follow, which continue the last segment).
  """
  B, T, F = x_BTF.shape
  W = filter_WF.shape[0]
  filter_WF = filter_WF.astype(x_BTF.dtype)
  if past_BPF is None:
    past_BPF = jnp.zeros((B, W - 1, F), x_BTF.dtype)
  line_BSF = jnp.concatenate([past_BPF.astype(x_BTF.dtype), x_BTF], axis=1)
  ids_BS = None
  if segment_ids_BT is not None:
    first_BP = jnp.repeat(segments.first_segment(segment_ids_BT)[:, None], W - 1, axis=1)
    ids_BS = jnp.concatenate([first_BP, segment_ids_BT], axis=1)

  y_BTF = x_BTF * filter_WF[0][None, None]
  for w in range(1, W):
    back_BTF = line_BSF[:, W - 1 - w: W - 1 - w + T]
    if ids_BS is not None:
      same_BT = ids_BS[:, W - 1 - w: W - 1 - w + T] == segment_ids_BT
      back_BTF = jnp.where(same_BT[..., None], back_BTF, 0)
    y_BTF += back_BTF * filter_WF[w][None, None]

  if ids_BS is None:
    return y_BTF, line_BSF[:, T:]
  start_B = segments.tokens_to_last(segment_ids_BT)
  past_BPF = segments.window(line_BSF, start_B, W - 1)
  ids_BP = segments.window(ids_BS, start_B, W - 1)
  return y_BTF, jnp.where((ids_BP == ids_BP[:, -1:])[..., None], past_BPF, 0)


class ShortConv(nn.Module):
  """The convolution with its filter; starts uniform, with mean square 1 / W per channel.

  Attributes:
    width: W, in tokens.
  """

  width: int = 4

  @nn.compact
  def __call__(self, x_BTF, past_BPF=None, segment_ids_BT=None):
    # Every channel is a filter of its own: F must not count into the fan.
    unit = nn.initializers.variance_scaling(
        1.0, "fan_in", "uniform", in_axis=0, out_axis=(), batch_axis=1)
    filter_WF = self.param("filter", unit, (self.width, x_BTF.shape[-1]))
    return short_conv(x_BTF, filter_WF, past_BPF, segment_ids_BT)
