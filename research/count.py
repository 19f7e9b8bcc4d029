"""What a model costs, counted by code: parameters, state, floating-point operations.

Operations are read off the traced program (its jaxpr): a matrix product of
m x k by k x n counts 2 m k n, any other arithmetic one per element it writes,
a loop its body times its length. Compilers fuse and reuse, so this is the
arithmetic asked for, not the arithmetic done.
"""

import math

import jax
import numpy as np

# Moving, naming or comparing numbers is no arithmetic.
FREE = frozenset("""broadcast_in_dim reshape transpose squeeze slice dynamic_slice
dynamic_update_slice concatenate pad rev gather scatter iota copy convert_element_type
select_n eq ne lt le gt ge and or not stop_gradient split bitcast_convert_type
random_wrap random_unwrap random_bits random_fold_in random_seed threefry2x32 shift_left
shift_right_logical argmax argmin sort sharding_constraint""".split())


def flops(jaxpr) -> int:
  """Returns the operations of a closed or open jaxpr."""
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  return sum(_of_equation(eqn) for eqn in jaxpr.eqns)


def _of_equation(eqn) -> int:
  name = eqn.primitive.name
  if name == "dot_general":
    (contracted, _), _ = eqn.params["dimension_numbers"]
    k = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    return 2 * k * eqn.outvars[0].aval.size
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval
    out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    return 2 * eqn.outvars[0].aval.size * kernel.size // kernel.shape[out_axis]
  inner = [flops(j) for j in _bodies(eqn)]
  if name == "scan":
    return eqn.params["length"] * sum(inner)
  if name == "cond":
    return max(inner, default=0)
  if inner:
    return sum(inner)
  if name in FREE:
    return 0
  if name.startswith(("reduce_", "cum")):
    return eqn.invars[0].aval.size
  return sum(v.aval.size for v in eqn.outvars if hasattr(v.aval, "size"))


def _bodies(eqn):
  """Yields the programs inside an equation; of a custom rule, the one that runs forward."""
  for key, value in eqn.params.items():
    if "bwd" in key or "jvp" in key and key != "jvp_jaxpr_fun":
      continue
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
        yield item


def of_function(function, *args) -> int:
  """Returns the operations of a call, from shapes alone."""
  return flops(jax.make_jaxpr(function)(*args))


def size(tree) -> int:
  """Returns the number of elements of all leaves."""
  return int(sum(math.prod(x.shape) for x in jax.tree.leaves(tree)))


def nbytes(tree) -> int:
  """Returns the bytes of all leaves."""
  return int(sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize
                 for x in jax.tree.leaves(tree) if not _is_key(x)))


def _is_key(x) -> bool:
  return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def state_bytes(model) -> int:
  """Returns the bytes of state that decoding carries per sequence; 0 if it has none."""
  if not hasattr(model, "init_state"):
    return 0
  return nbytes(jax.eval_shape(lambda: model.init_state(1)))
