"""Pallas kernels on NVIDIA GPUs: Mosaic GPU on Hopper for what it knows, Triton for the rest.

Lowered for cuda on a CPU and emulated; never run on a GPU, so `auto` does not choose them.
"""

from pallas_kernels import hopper
from pallas_kernels.chunk_recurrence import triton
from pallas_kernels.chunk_recurrence.plan import Inputs, Plan


def why_not(plan: Plan, platform: str) -> str | None:
  """Reason why no GPU kernel can run `plan` on `platform`, or None."""
  if platform != "gpu":
    return "it needs an NVIDIA GPU"
  not_hopper = _why_not_hopper(plan)
  not_triton = triton.why_not(plan, platform)
  if not_hopper and not_triton:
    return f"Mosaic GPU: {not_hopper}; Triton: {not_triton}"
  return None


def forward(plan: Plan, inputs: Inputs):
  """As triton.forward."""
  return _kernels(plan).forward(plan, inputs)


def backward(plan: Plan, inputs: Inputs, states, do_BTHV, dstate_BHKV) -> Inputs:
  """As triton.backward."""
  return _kernels(plan).backward(plan, inputs, states, do_BTHV, dstate_BHKV)


def _kernels(plan):
  return triton if _why_not_hopper(plan) else _hopper_kernels()


def _why_not_hopper(plan):
  return hopper.why_not() or _hopper_kernels().why_not(plan)


def _hopper_kernels():
  # Importing it loads the GPU compiler's bindings, which not every jaxlib has.
  from pallas_kernels.chunk_recurrence import mosaic_gpu
  return mosaic_gpu
