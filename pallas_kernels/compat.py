"""The only file that looks at jax versions: one name per thing that moved or changed.

Everything else in the project imports from here and never compares versions itself.
"""

import jax

JAX_VERSION = jax.__version_info__


def is_concrete(x) -> bool:
  """True if the values of `x` can be looked at now, i.e. it is not being traced."""
  return not isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct)
