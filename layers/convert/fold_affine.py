"""Moves the gain g and the bias b of every norm into the maps that read it, and leaves the norm bare.

    W^T (s (g n + b)) + c = (diag(g) W)^T (s n) + (c + W^T (s b))         n = the bare norm of the stream

s is the factor of the placement (LayerNorm Scaling) on what a sublayer reads. Where the
norms have biases every reader needs one, and the layer that has it gives one to its
writers too, of zeros.
"""

import jax.numpy as jnp

from layers import stream_map as streams
from layers.convert.fuse_affine import read_by, with_zero_biases


def fold_affine(params, stream: streams.StreamMap):
  """Returns the parameters of the same model whose norms have neither gain nor bias.

  Args:
    params: of the model.
    stream: its map.

  Raises:
    ValueError: see layers/stream_map.check_plain, or the norm has more than a gain and a bias.
  """
  streams.check_plain(stream)
  biased, changes = False, {}
  for site in stream.readers:
    norm = streams.at(params, site.norm, {})
    if unknown := set(norm) - {"scale", "bias"}:
      raise ValueError(f"{type(stream.norm).__name__} has a parameter {min(unknown)!r} beside its gain and bias; "
                       "only those fold into what reads it.")
    biased |= "bias" in norm
    changes[site.norm] = None
    if not norm:
      continue
    module = streams.at(params, site.path)
    kernel, features = module["kernel"], 1 + bool(site.repeats)
    A_D = norm.get("scale", jnp.ones(kernel.shape[:features], kernel.dtype))
    changes[site.path] = read_by(module, A_D, norm.get("bias"), site)
  folded = streams.replaced(params, changes)
  return with_zero_biases(folded, stream.writers) if biased else folded
