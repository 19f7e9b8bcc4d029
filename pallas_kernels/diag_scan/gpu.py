"""The elementwise scan on NVIDIA GPUs: the Mosaic GPU kernel, whose copies need Hopper.

Lowered for cuda on a CPU and emulated; never run on a GPU, so `auto` does not choose it.
"""

from pallas_kernels import hopper
from pallas_kernels.diag_scan import planes


def why_not(shape, dtype, platform) -> str | None:
  """Reason why this backend cannot run here, or None."""
  del shape
  if platform != "gpu":
    return "it needs an NVIDIA GPU"
  return planes.refuse(dtype) or hopper.why_not()


def scan(a, x_BTD, h0_BD, reverse, late=False):
  """h_BTD; arguments as tpu.scan."""
  # Importing it loads the GPU compiler's bindings, which not every jaxlib has.
  from pallas_kernels.diag_scan import mosaic_gpu
  return mosaic_gpu.scan(a, x_BTD, h0_BD, reverse, late)
