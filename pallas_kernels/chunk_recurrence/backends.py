"""Which implementations exist, which of them can run here, and which one `auto` takes.

A backend is a module with three functions, listed in `BACKENDS`:

    why_not(plan, platform) -> None, or the reason why it cannot run
    forward(plan, inputs) -> (o, final state, entry state of every chunk [N,B,H,K,V] in v's dtype),
        which may be None unless plan.save_states is "save"
    backward(plan, inputs, states, do, dstate) -> Inputs of cotangents

`states` is the only thing that a forward hands to a backward, so the two may come from different
backends. `reference` is apart: it is differentiated by jax itself and serves as the oracle.
"""

from typing import NamedTuple

from pallas_kernels.chunk_recurrence import gpu, interpret, tpu, xla
from pallas_kernels.chunk_recurrence.plan import Plan

BACKENDS = {"xla": xla, "pallas_tpu": tpu, "pallas_gpu": gpu, "interpret": interpret}

# What `auto` tries, best first. The TPU kernels go by their static schedules (bundles.csv), the others by
# measurements.
AUTO = {"tpu": ("pallas_tpu", "xla"), "gpu": ("xla",), "cpu": ("xla",)}

# What `auto` leaves to the caller.
UNMEASURED = {"gpu": {"pallas_gpu": "never run on a GPU, so never measured against xla; name it to try it"}}

NAMES = ("reference", "xla", "pallas_tpu", "pallas_gpu", "interpret")


class Choice(NamedTuple):
  """The backend that runs, why, and why not those that `auto` would have preferred."""

  name: str
  reason: str
  refused: dict[str, str]


def choose(name: str, plan: Plan, platform: str) -> Choice:
  """Resolves a backend name.

  Raises:
    ValueError: the name is unknown, or the named backend cannot run `plan` on `platform`.
  """
  if name == "auto":
    return _automatic(plan, platform)
  if name not in NAMES:
    raise ValueError(f"backend={name!r} must be 'auto' or one of {NAMES}.")
  reason = _why_not(name, plan, platform)
  if reason:
    raise ValueError(f"backend={name!r} cannot run this call on {platform}: {reason}; "
                     "use backend='auto' or 'xla'.")
  return Choice(name, "named by the caller", {})


def _automatic(plan, platform):
  refused = dict(UNMEASURED.get(platform, {}))
  for name in AUTO.get(platform, ("xla",)):
    reason = _why_not(name, plan, platform)
    if not reason:
      return Choice(name, f"first on the list for {platform} that can run this call", refused)
    refused[name] = reason
  raise ValueError(f"no backend for {platform}: {refused}.")


def _why_not(name, plan, platform):
  if name == "reference":
    return None
  if name not in BACKENDS:
    return "this build has no such kernel"
  return BACKENDS[name].why_not(plan, platform)
