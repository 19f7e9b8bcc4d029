"""The TPU kernel emulated on any device: for its mathematics, not for speed."""

import functools

from pallas_kernels.diag_scan import planes, tpu


def why_not(shape, dtype, platform) -> str | None:
  """Reason why this backend cannot run here, or None."""
  del shape, platform
  return planes.refuse(dtype)


scan = functools.partial(tpu.scan, interpret=True)
