"""Kernels that are functions of other parameters, computed once and for all.

sigma_reparam, weight_norm and zero_mean of layers/kernel_transforms.py become plain
kernels: those of evaluation, which for sigma_reparam means one step of the power
iteration from the stored vector.
"""

import math

from layers import kernel_transforms
from layers import stream_map as streams


def plain(module, state, transform: str, inputs: int):
  """Returns {"kernel"} or {"kernel", "bias"} of one layer's map.

  Args:
    module: its parameters.
    state: its entry in the collection "kernel_state", {} where the transform keeps none.
    transform: a name of layers/kernel_transforms.py.
    inputs: number of axes of the kernel that are summed over.
  """
  shape, bias = module["kernel"].shape, module.get("bias")
  W_IO = module["kernel"].reshape(math.prod(shape[:inputs]), -1)
  if transform == "zero_mean":
    W_IO, bias_O = kernel_transforms.zero_mean(W_IO, None if bias is None else bias.reshape(-1))
    bias = None if bias is None else bias_O.reshape(bias.shape)
  elif transform == "weight_norm":
    W_IO = kernel_transforms.weight_norm(W_IO, module["length"])
  else:
    sigma, _ = kernel_transforms.power_iteration(W_IO, state["u"])
    W_IO = kernel_transforms.sigma_reparam(W_IO, module["sigma_scale"], sigma)
  made = {"kernel": W_IO.reshape(shape)}
  return made if bias is None else made | {"bias": bias}


def materialise(variables, stream: streams.StreamMap):
  """Returns the parameters of the same model without transforms of its kernels.

  Args:
    variables: {"params"}, with "kernel_state" where a transform has a state.
    stream: map of the model, which names the maps whose layer has a transform.
  """
  params, states = variables["params"], variables.get(kernel_transforms.COLLECTION, {})
  changes = {}
  for site in stream.readers + stream.writers:
    if not site.transform:
      continue
    module, state = streams.at(params, site.path), streams.at(states, site.path, {})
    # A reader sums over the features of the stream; a writer over all that it does not write.
    inputs = 1 if site in stream.readers else module["kernel"].ndim - 1 - bool(site.repeats)
    one = lambda module, state: plain(module, state, site.transform, inputs)
    changes[site.path] = streams.each(site, one)(module, state)
  return streams.replaced(params, changes)
