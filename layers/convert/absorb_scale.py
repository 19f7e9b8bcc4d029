"""Moves the factor on what a sublayer reads (LayerNorm Scaling) into the maps that read it.

    W^T (s h) = (s W)^T h

What remains is the placement "pre", with one multiplication less per sublayer.

Reference: Sun et al., "The Curse of Depth in Large Language Models", 2025.
"""

import numpy as np

from layers import stream_map as streams


def absorb_scale(params, stream: streams.StreamMap):
  """Returns the parameters of the same model whose placement has in_scale 1 everywhere.

  Args:
    params: of the model.
    stream: its map.

  Raises:
    ValueError: a kernel is a function of its parameters.
  """
  if transform := next((site.transform for site in stream.readers if site.transform), ""):
    raise ValueError(f"kernel_transform={transform!r} makes a kernel of other parameters; materialise it first.")
  def scaled(W, site):
    s = np.asarray(streams.scales(site, W))
    return W * s.reshape(s.shape + (1,) * (W.ndim - s.ndim))
  return streams.changed_weights(params, stream.readers, scaled)
