"""Pre-LN to Pre-RMSNorm: the mean of the residual stream, which no LayerNorm reads, is never written.

With C = I - 1 1^T / D every map W, c to the stream becomes W C, C c, and so do the
embeddings. The stream then has mean 0, where the variance is the mean square, and

    LN(x) = RMSNorm(C x)            of the same eps, gain, and without a bias

The pass is a linear map of parameters. Differentiated through, it is the training form:
gradients of the raw parameters are those of the Pre-LN model, and so is their
trajectory under any optimizer.

Reference: Jiang, Gu, Zhu and Pan, "Pre-RMSNorm and Pre-CRMSNorm Transformers:
Equivalent and Efficient Pre-LN Transformers", 2023, section 3.
"""

import jax.numpy as jnp

from layers import stream_map as streams
from layers.norms.layer_norm import LayerNorm


def centre(x):
  """Takes the mean over the last axis away."""
  return x - jnp.mean(x, axis=-1, keepdims=True)


def to_rms(params, stream: streams.StreamMap):
  """Returns the parameters of the same model with RMSNorm of the same eps in place of LayerNorm.

  Args:
    params: of the model.
    stream: its map.

  Raises:
    ValueError: see layers/stream_map.check_plain, or `check_centrable`.
  """
  check_centrable(stream)
  if getattr(stream.norm, "bias", False):
    raise ValueError("bias=True: RMSNorm has no bias; take fold_affine first.")
  return centred(params, stream)


def check_centrable(stream: streams.StreamMap) -> None:
  """Refuses a model whose stream cannot lose its mean.

  Raises:
    ValueError: the norm is no LayerNorm, or dropout falls on the stream.
  """
  streams.check_plain(stream)
  if not isinstance(stream.norm, LayerNorm):
    raise ValueError(f"norm {type(stream.norm).__name__} is not LayerNorm; others see the mean of the residual stream.")
  if stream.dropout:
    raise ValueError(f"dropout={stream.dropout} on what is written leaves no mean at 0; train with dropout=0.")


def centred(params, stream: streams.StreamMap):
  """Returns the parameters of writers whose every sum is 0."""
  params = streams.changed_weights(params, stream.writers, lambda weight, site: centre(weight))
  biased = [site for site in stream.writers if "bias" in streams.at(params, site.path)]
  return streams.replaced(params, {(*s.path, "bias"): centre(streams.at(params, s.path)["bias"]) for s in biased})
