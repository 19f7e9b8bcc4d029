"""The only file that looks at jax versions: one name per thing that moved or changed.

Everything else in the project imports from here and never compares versions itself.
"""

import importlib
import importlib.util

import jax

JAX_VERSION = jax.__version_info__

# XLA flags that compile small CPU programs in a fraction of the time, where this jax has them (an unknown one aborts).
QUICK_COMPILES = ("--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
                  if JAX_VERSION < (0, 11) else "")

# Deprecated since jax 0.11 and to be removed: None where it is gone.
pallas_triton = None
if importlib.util.find_spec("jax.experimental.pallas.triton"):
  pallas_triton = importlib.import_module("jax.experimental.pallas.triton")


def gpu_interpreter():
  """Constructor of parameters that run a Mosaic GPU kernel on a CPU, None where jax has none."""
  mosaic_gpu = importlib.import_module("jax.experimental.pallas.mosaic_gpu")
  return getattr(mosaic_gpu, "InterpretGPUParams", None)


def is_concrete(x) -> bool:
  """True if the values of `x` can be looked at now, i.e. it is not being traced."""
  return not isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct)


def vary_alike(tree):
  """Gives all arrays of a tree the same varying mesh axes, as a scan inside `jax.shard_map` demands."""
  varying = lambda x: jax.typeof(x).manual_axis_type.varying
  axes = frozenset().union(*map(varying, jax.tree.leaves(tree)))

  def widen(x):
    missing = tuple(axes - varying(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x

  return jax.tree.map(widen, tree)
