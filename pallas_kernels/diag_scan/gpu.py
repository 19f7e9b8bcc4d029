"""The elementwise scan on NVIDIA GPUs: the Mosaic GPU kernel, whose copies need Hopper.

Lowered for cuda on a CPU and emulated; never run on a GPU, so `auto` does not choose it.
"""

import jax

from pallas_kernels.diag_scan import planes

HOPPER = "9.0"  # compute capability


def why_not(shape, dtype, platform) -> str | None:
  """Reason why this backend cannot run here, or None."""
  del shape
  if platform != "gpu":
    return "it needs an NVIDIA GPU"
  if reason := planes.refuse(dtype):
    return reason
  capability = _capability()
  if capability != HOPPER:
    return f"it needs compute capability {HOPPER} (Hopper), the first local GPU has {capability}"
  return None


def scan(a, x_BTD, h0_BD, reverse, late=False):
  """h_BTD; arguments as tpu.scan."""
  # Importing it loads the GPU compiler's bindings, which not every jaxlib has.
  from pallas_kernels.diag_scan import mosaic_gpu
  return mosaic_gpu.scan(a, x_BTD, h0_BD, reverse, late)


def _capability():
  """Compute capability of the first local GPU, or None."""
  gpus = [device for device in jax.local_devices() if device.platform == "gpu"]
  return gpus[0].compute_capability if gpus else None
