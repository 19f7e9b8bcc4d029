"""Folds norms that are affine in evaluation into the linear maps that read them.

    W^T (A x + B) + c = (A W)^T x + (c + W^T B)

A norm of this kind (BatchNorm, RepBN, PRepBN, Unified Normalization, PowerNorm without
groups) says its (A, B) by a method `as_affine(variables)`. The fused model has no norms
at all: placement "none", and biases at every reader.

References: Yang et al., "Unified Normalization for Accelerating and Stabilizing
Transformers", 2022; Guo et al., "SLAB", 2024, section 3.2.
"""

import jax
import jax.numpy as jnp

from layers import batch_statistics
from layers import stream_map as streams


def fuse(kernel_DF, bias_F, A_D, B_D):
  """Returns the kernel and bias that read the raw x; F may be several axes, bias_F may be 0."""
  A_D1 = A_D.reshape(A_D.shape + (1,) * (kernel_DF.ndim - 1))
  return A_D1 * kernel_DF, bias_F + jnp.tensordot(B_D, kernel_DF, axes=1)


def read_by(module, A_D, B_D, site):
  """Returns the parameters of a reader that computes from n what it did from A n + B.

  Args:
    module: {"kernel"} or {"kernel", "bias"} of the reader, with its axis of layers if it has one.
    A_D: the gains, with that axis too.
    B_D: likewise, or None for no offset.
    site: of the reader; its factor `scale` stays on what it reads, so B is multiplied here.
  """
  if B_D is None:
    kernel, _ = streams.each(site, lambda W, A: fuse(W, 0.0, A, jnp.zeros_like(A)))(module["kernel"], A_D)
    return {**module, "kernel": kernel}
  def one(W, c, A, B, s):
    kernel, offset = fuse(W, c, A, s * B)
    return {"kernel": kernel, "bias": offset}
  kernel = module["kernel"]
  stacked = bool(site.repeats)
  bias = module.get("bias")
  if bias is None:
    bias = jnp.zeros(kernel.shape[:stacked] + kernel.shape[stacked + 1:], kernel.dtype)
  return streams.each(site, one)(kernel, bias, A_D, B_D, streams.scales(site, kernel))


def with_zero_biases(params, writers):
  """Returns the parameters with a bias of zeros at every map to the stream that has none.

  Layers have one switch for the biases of all their maps.
  """
  changes = {}
  for site in writers:
    module = streams.at(params, site.path)
    if "kernel" in module and "bias" not in module:
      kernel = module["kernel"]
      changes[*site.path, "bias"] = jnp.zeros((*kernel.shape[:bool(site.repeats)], kernel.shape[-1]), kernel.dtype)
  return streams.replaced(params, changes)


def fuse_affine(variables, stream: streams.StreamMap):
  """Returns the parameters of the model without norms that computes what evaluation does.

  Args:
    variables: {"params", "batch_stats"} of the model.
    stream: its map; factors of the placement go through `absorb_scale` first.

  Raises:
    ValueError: see layers/stream_map.check_plain; the norm is not affine; or in_scale is not 1.
  """
  streams.check_plain(stream)
  if not hasattr(stream.norm, "as_affine"):
    raise ValueError(f"{type(stream.norm).__name__} is not affine in evaluation, so no map can absorb it; "
                     "BatchNorm, RepBN, PRepBN, UnifiedNorm and PowerNorm(groups=0) are.")
  if any(s != 1 for site in stream.readers for s in site.scale):
    raise ValueError("in_scale is not 1 in every layer; take absorb_scale first.")
  params, changes = variables["params"], {}
  own = {"params": params, batch_statistics.COLLECTION: variables[batch_statistics.COLLECTION]}
  for site in stream.readers:
    norm = {name: streams.at(tree, site.norm) for name, tree in own.items()}
    A_D, B_D = (jax.vmap(stream.norm.as_affine) if site.repeats else stream.norm.as_affine)(norm)
    changes[site.path] = read_by(streams.at(params, site.path), A_D, B_D, site)
    changes[site.norm] = None
  return with_zero_biases(streams.replaced(params, changes), stream.writers)
