"""Pre-LN to Pre-CRMSNorm: of D features that sum to 0 only the first D - 1 are kept.

After the pass of layers/convert/to_rms.py the last feature of the stream is minus the
sum of the others. Writers drop it; readers, whose norm is layers/norms/crms_norm.py, get

    W[:D-1] - W[D-1:]                   rows are the features that are read

Reference: Jiang, Gu, Zhu and Pan, "Pre-RMSNorm and Pre-CRMSNorm Transformers:
Equivalent and Efficient Pre-LN Transformers", 2023, section 3.
"""

import jax

from layers import stream_map as streams
from layers.convert import to_rms


def to_crms(params, stream: streams.StreamMap):
  """Returns the parameters of the model that is one feature narrower, with CRMSNorm of the same eps.

  Args:
    params: of a model with bare LayerNorms.
    stream: its map.

  Raises:
    ValueError: see layers/convert/to_rms.check_centrable; or the norms are not bare.
  """
  to_rms.check_centrable(stream)
  if stream.norm.gain or stream.norm.bias:
    raise ValueError(f"gain={stream.norm.gain} and bias={stream.norm.bias}: CRMSNorm has neither; take fold_affine first.")
  params = to_rms.centred(params, stream)
  narrow = lambda W: jax.lax.slice_in_dim(W, 0, W.shape[-1] - 1, axis=-1)
  params = streams.changed_weights(params, stream.writers, lambda weight, site: narrow(weight))
  biases = {(*site.path, "bias"): narrow(streams.at(params, site.path)["bias"])
            for site in stream.writers if "bias" in streams.at(params, site.path)}
  read = lambda weight, site: streams.each(site, lambda W: W[:-1] - W[-1:])(weight)
  return streams.changed_weights(streams.replaced(params, biases), stream.readers, read)
