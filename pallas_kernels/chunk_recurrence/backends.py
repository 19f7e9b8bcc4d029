"""Which implementations exist, which of them can run here, and which one `auto` takes.

A backend is a module with three functions, listed in `BACKENDS`:

    why_not(plan, platform) -> None, or the reason why it cannot run
    forward(plan, inputs) -> (o, final state, entry state of every chunk [N,B,H,K,V] in v's dtype),
        which may be None unless plan.save_states is "save"
    backward(plan, inputs, states, do, dstate) -> Inputs of cotangents

`states` is the only thing that a forward hands to a backward, so the two may come from different
backends. `reference` is apart: it is differentiated by jax itself and serves as the oracle.
"""

from pallas_kernels import choice
from pallas_kernels.chunk_recurrence import gpu, interpret, tpu, xla
from pallas_kernels.chunk_recurrence.plan import Plan

BACKENDS = {"xla": xla, "pallas_tpu": tpu, "pallas_gpu": gpu, "interpret": interpret}

# What `auto` tries, best first. The TPU kernels go by their static schedules (bundles.csv), the others by
# measurements.
AUTO = {"tpu": ("pallas_tpu", "xla"), "gpu": ("xla",), "cpu": ("xla",)}

# What `auto` leaves to the caller.
UNMEASURED = {"gpu": {"pallas_gpu": "never run on a GPU, so never measured against xla; name it to try it"}}


def choose(name: str, plan: Plan, platform: str) -> choice.Choice:
  """Resolves a backend name; raises as choice.choose."""
  return choice.choose(name, platform, AUTO.get(platform, ("xla",)),
                       lambda backend: _why_not(backend, plan, platform), UNMEASURED.get(platform, {}))


def _why_not(name, plan, platform):
  if name == "reference":
    return None
  if name not in BACKENDS:
    return "this build has no such kernel"
  return BACKENDS[name].why_not(plan, platform)
