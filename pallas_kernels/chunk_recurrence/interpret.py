"""The TPU kernels emulated on any device: for their mathematics, not for speed."""

import functools

from pallas_kernels.chunk_recurrence import tpu
from pallas_kernels.chunk_recurrence.plan import Plan


def why_not(plan: Plan, platform: str) -> str | None:
  """Reason why this backend cannot run `plan`, or None."""
  del platform
  if plan.dtype not in ("float32", "bfloat16"):
    return f"the TPU kernels take float32 and bfloat16, not {plan.dtype}"
  return None


forward = functools.partial(tpu.forward, interpret=True)
backward = functools.partial(tpu.backward, interpret=True)
