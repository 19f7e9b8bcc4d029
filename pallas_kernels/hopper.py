"""Whether the GPU of this process has what the Mosaic GPU kernels need: TMA copies and wgmma, so Hopper."""

import jax

CAPABILITY = "9.0"  # of Hopper


def why_not() -> str | None:
  """Reason why Hopper kernels cannot run here, or None."""
  found = capability()
  if found != CAPABILITY:
    return f"it needs compute capability {CAPABILITY} (Hopper), the first local GPU has {found}"
  return None


def capability() -> str | None:
  """Compute capability of the first local GPU, or None."""
  gpus = [device for device in jax.local_devices() if device.platform == "gpu"]
  return gpus[0].compute_capability if gpus else None
