"""Lowers functions for a device that this machine does not have."""

import re

import jax

_H100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")


def lower_for_hopper(function, *arguments) -> str:
  """StableHLO text of `function`, jitted, lowered for cuda as if an H100 were there.

  Args:
    function: a function of arrays.
    arguments: arrays or ShapeDtypeStructs.
  """
  # Newer versions ask the device for its features and take an abstract one for an answer.
  mesh = jax.sharding.AbstractMesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,),
                                   abstract_device=_H100)
  with jax.sharding.use_abstract_mesh(mesh):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def custom_calls(text: str) -> list[str]:
  """Targets of the custom calls in a lowered text, in order, annotations of shardings left out."""
  return [name for name in re.findall(r"custom_call @([\w.$]+)", text) if name != "Sharding"]
