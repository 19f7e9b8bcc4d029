"""Pallas kernels on NVIDIA GPUs: Mosaic GPU on Hopper for what fills its tiles, Triton for the rest.

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


def hopper_kernels(plan: Plan):
  """The module whose kernels compute `plan` on Hopper, if its `why_not` has nothing against it."""
  # Importing them loads the GPU compiler's bindings, which not every jaxlib has.
  from pallas_kernels.chunk_recurrence import mosaic_gpu, mosaic_gpu_states
  return mosaic_gpu_states if plan.delta or plan.decay == "vector" else mosaic_gpu


def _kernels(plan):
  return triton if _why_not_hopper(plan) else hopper_kernels(plan)


def _why_not_hopper(plan):
  return hopper.why_not() or hopper_kernels(plan).why_not(plan)
