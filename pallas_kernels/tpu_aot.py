"""Compiles the TPU kernels for TPUs that are not there, and reads the compiler's own figures.

Needs libtpu (the extra `tpu`) and, where there is no TPU, this environment before jax starts:

    TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost TPU_ACCELERATOR_TYPE=v5litepod-4
    ALLOW_MULTIPLE_LIBTPU_LOAD=1 JAX_PLATFORMS=cpu
"""

import importlib.util
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence import tpu
from pallas_kernels.chunk_recurrence.plan import default_chunk, Inputs, Plan
from pallas_kernels.diag_scan import api as scans

ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
               "TPU_ACCELERATOR_TYPE": "v5litepod-4", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


class Report(NamedTuple):
  """What a compiled kernel costs, in bytes.

  Attributes:
    vmem: scoped VMEM of the largest kernel.
    temporaries: HBM beside arguments and outputs.
    copies: types of the arrays that are copied or transposed outside the kernels.
    kernels: number of kernels.
  """

  vmem: int
  temporaries: int
  copies: tuple[str, ...]
  kernels: int


def available() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec("libtpu") is not None


def plan_of(decay, delta, *, B=2, T=1024, H=8, G=None, D=128, V=None, dtype="bfloat16", chunk=None,
            packed=False, reverse=False, save_states="save") -> Plan:
  """A plan as the public call would make it on a TPU."""
  V = V or D
  return Plan(decay=decay, delta=delta, packed=packed, B=B, T=T, H=H, G=G or H, K=D, V=V, dtype=dtype,
              scale=D**-0.5, chunk=chunk or default_chunk(decay, delta, D, V, T, dtype, "tpu"), reverse=reverse,
              precision="mixed", save_states=save_states, forward="pallas_tpu", backward="pallas_tpu")


def compile_forward(plan: Plan, topology: str):
  """The compiled forward for one chip of a topology, on flat arrays."""
  return _compile(lambda *args: _flat_output(tpu.forward(plan, _inputs(plan, args))), _arguments(plan), topology)


def compile_backward(plan: Plan, topology: str):
  """The compiled backward, on flat arrays and saved states."""
  arguments = _arguments(plan)
  count = len(arguments)
  shape = (plan.B, plan.T, plan.H * plan.V)
  arguments += [(shape, plan.dtype), ((plan.B, plan.H, plan.K, plan.V), "float32")]
  if plan.save_states == "save":
    arguments.append(((plan.chunks, plan.B, plan.H, plan.K, plan.V), plan.dtype))

  def run(*args):
    do = args[count].reshape(plan.B, plan.T, plan.H, plan.V)
    states = args[count + 2] if plan.save_states == "save" else None
    d = tpu.backward(plan, _inputs(plan, args[:count]), states, do, args[count + 1])
    return Inputs(*(x.reshape(*x.shape[:2], -1) if i < 3 or (i == 3 and x is not None) else x
                    for i, x in enumerate(d)))

  return _compile(run, arguments, topology)


def compile_scan(kind: str, topology: str, *, backward=False, B=1, T=1024, D=512, reverse=False):
  """The compiled elementwise scan, or its gradients in a, x and h0.

  Args:
    kind: "real" or "complex", with " constant" after it for a factor that never changes.
    topology: as above.
    backward: whether to compile `jax.grad` of the differentiable scan.
    B, T, D, reverse: sizes and direction.
  """
  dtype = "complex64" if kind.startswith("complex") else "float32"
  arguments = [((D,) if "constant" in kind else (B, T, D), dtype), ((B, T, D), dtype), ((B, D), dtype)]
  run = lambda *arrays: scans.run("pallas_tpu", reverse, *arrays)
  if backward:
    arguments.append(((B, T, D), dtype))
    return _compile(lambda *args: jax.vjp(run, *args[:3])[1](args[3]), arguments, topology)
  return _compile(run, arguments, topology)


def report(compiled) -> Report:
  """Reads the figures of a compiled call."""
  text = compiled.as_text()
  kernels = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
  vmem = [int(size) for line in kernels
          for size in re.findall(r'"memory_space":"1","offset":"0","size":"(\d+)"', line)]
  copies = re.findall(r"= (\w+\[[\d,]*\])\S* (?:copy|transpose|copy-start)\(", text)
  return Report(max(vmem, default=0), compiled.memory_analysis().temp_size_in_bytes, tuple(copies),
                len(kernels))


def _compile(function, arguments, topology):
  devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[topology]).devices
  sharding = jax.sharding.SingleDeviceSharding(devices[0])
  structs = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding) for shape, dtype in arguments]
  return jax.jit(function).lower(*structs).compile()


def _arguments(plan):
  """(shape, dtype) of the flat q, k, v, g, beta, state, segments that the plan has."""
  B, T, H, G, K, V = plan.B, plan.T, plan.H, plan.G, plan.K, plan.V
  gate = {"none": [], "scalar": [((B, T, H), "float32")], "vector": [((B, T, H * K), "float32")]}[plan.decay]
  return ([((B, T, G * K), plan.dtype)] * 2 + [((B, T, H * V), plan.dtype)] + gate
          + [((B, T, H), "float32")] * plan.delta + [((B, H, K, V), "float32")]
          + [((B, T), "int32")] * plan.packed)


def _inputs(plan, args):
  args = list(args)
  heads = lambda x, n: x.reshape(plan.B, plan.T, n, -1)
  q, k, v = heads(args.pop(0), plan.G), heads(args.pop(0), plan.G), heads(args.pop(0), plan.H)
  g = None if plan.decay == "none" else args.pop(0)
  if plan.decay == "vector":
    g = heads(g, plan.H)
  beta = args.pop(0) if plan.delta else None
  return Inputs(q, k, v, g, beta, args[0], args[1] if plan.packed else None)


def _flat_output(out):
  o, final, states = out
  return o.reshape(*o.shape[:2], -1), final, states
