"""Short causal depthwise convolution: each channel mixes its last few tokens.

    y_t = sum_{w=0}^{W-1} c_w x_{t-w}          one filter c of width W per channel

Tokens before the sequence, and tokens of another segment, count as zero. The
state is the last W-1 inputs, so a sequence may be cut anywhere.

Reference: the token shift that linear recurrences put before their keys, e.g.
Gu and Dao, "Mamba", 2023, and Yang et al., "Gated Delta Networks", 2024.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import segments, sums


@jax.custom_vjp
def mix(line_BSF, filter_WF, same_WBT=None):
  """Returns y_t = sum_w c_w line_{t + W - 1 - w}, [B, S - W + 1, F]; only where `same`, if given.

  Its backward pass is written out, as slices of one padded array: the sum of padded arrays that
  differentiation makes of slices takes ten times as long on a CPU.
  """
  return sum(back_BTF * c_F[None, None] for back_BTF, c_F in zip(_backs(line_BSF, same_WBT, len(filter_WF)), filter_WF))


def _backs(line_BSF, same_WBT, W):
  """Yields the inputs w = 0 .. W-1 tokens back."""
  T = line_BSF.shape[1] - W + 1
  for w in range(W):
    back_BTF = line_BSF[:, W - 1 - w: W - 1 - w + T]
    yield back_BTF if same_WBT is None else jnp.where(same_WBT[w][..., None], back_BTF, 0)


def _mix_forward(line_BSF, filter_WF, same_WBT):
  return mix(line_BSF, filter_WF, same_WBT), (line_BSF, filter_WF, same_WBT)


def _mix_backward(kept, dy_BTF):
  line_BSF, filter_WF, same_WBT = kept
  W, S = len(filter_WF), line_BSF.shape[1]
  # Without it what made dy, commonly the gradient of a silu, is computed anew in each of the 2 W products.
  dy_BTF = jax.lax.optimization_barrier(dy_BTF)
  zeros_BPF = jnp.zeros((dy_BTF.shape[0], W - 1, dy_BTF.shape[2]), dy_BTF.dtype)
  dline_BSF = jnp.zeros_like(line_BSF)
  for w in range(W):
    masked_BTF = dy_BTF if same_WBT is None else jnp.where(same_WBT[w][..., None], dy_BTF, 0)
    padded = jnp.concatenate([zeros_BPF, masked_BTF, zeros_BPF], axis=1)
    dline_BSF += padded[:, w: w + S] * filter_WF[w][None, None]
  dfilter_WF = jnp.stack([sums.over_rows((back_BTF * dy_BTF).astype(jnp.float32))
                          for back_BTF in _backs(line_BSF, same_WBT, W)])
  return dline_BSF, dfilter_WF.astype(filter_WF.dtype), None


mix.defvjp(_mix_forward, _mix_backward)


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

  same_WBT = None
  if ids_BS is not None:
    same_WBT = jnp.stack([ids_BS[:, W - 1 - w: W - 1 - w + T] == segment_ids_BT for w in range(W)])
  y_BTF = mix(line_BSF, filter_WF, same_WBT)

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
