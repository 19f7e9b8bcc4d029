"""What a router answers, and what every router needs to answer it.

A router is a module `routing = router(x_ND, carry=None, real_N=None)`: for each of N tokens it
weighs E experts, and the mixture is y_n = sum_e gates[n, e] expert_e(x_n).
Which tokens are computed where is the business of layers/moe/dispatch.py. `real_N` says which tokens are no
padding; what a router tells of a batch (losses, stats, its state) is of these, what it says of padding is nobody's.

A loss that a router returns as "balance" is not weighted; the router's field
`balance_weight` is its weight. A router whose class says `needs_carry = True` has
`init_carry(rows)` and hands its carry from layer to layer; one that says
`per_row = True` takes the field `tokens`, the length of a row of the batch, since
for it the order of tokens matters.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import probe
from layers.dense import Dense

# Dims: N tokens, D model width, E experts, K experts per token.

HIGHEST = jax.lax.Precision.HIGHEST


class Routing(NamedTuple):
  """The answer of a router.

  Attributes:
    gates_NE: combine weights in float32, zero where an expert is not chosen.
    indices_NK: the chosen experts, first choice first; None where their number varies.
    losses: name -> unweighted scalar.
    stats: name -> scalar that is only shown.
    carry: what the next layer's router receives.
  """

  gates_NE: jax.Array
  indices_NK: jax.Array | None
  losses: dict[str, jax.Array]
  stats: dict[str, jax.Array]
  carry: Any = None


def linear(experts: int, name: str, kernel_init=nn.initializers.lecun_normal(), bias=False) -> Dense:
  """Returns a map to one logit per expert that is exact float32 on every device."""
  return Dense(experts, use_bias=bias, dtype=jnp.float32, precision=HIGHEST, kernel_init=kernel_init, name=name)


def check_top_k(top_k: int, experts: int) -> None:
  """Refuses a number of choices that the experts cannot serve.

  Raises:
    ValueError: top_k is not from 1 to experts.
  """
  if not 1 <= top_k <= experts:
    raise ValueError(f"top_k={top_k} must be from 1 to experts={experts}; choose fewer per token, or add experts.")


def scatter(values_NK, indices_NK, experts: int):
  """Returns [N, E]: each value at its expert, zero elsewhere."""
  hot_NKE = jax.nn.one_hot(indices_NK, experts, dtype=values_NK.dtype)
  return jnp.sum(values_NK[..., None] * hot_NKE, axis=-2)


def moved(bias_E, gates_NE, rate: float):
  """Returns the bias of a choice after a batch: up where an expert had less than its share, down where more."""
  count_E = jnp.sum(gates_NE != 0, axis=0, dtype=jnp.float32)
  return bias_E + rate * jnp.sign(jnp.mean(count_E) - count_E)


def only(values_NE, real_N):
  """Returns the values with zeros for padding."""
  return values_NE if real_N is None else jnp.where(real_N[:, None], values_NE, 0)


def mean(values, real_N=None):
  """Returns the mean over the first axis, of real tokens only; 0 if there are none."""
  if real_N is None:
    return jnp.mean(values, axis=0)
  real = real_N.reshape(real_N.shape + (1,) * (values.ndim - 1))
  return jnp.sum(jnp.where(real, values, 0), axis=0) / jnp.maximum(jnp.sum(real_N), 1)


def entropy(p_NE, real_N=None):
  """Returns the entropy in nats of a token's distribution over experts, mean over tokens."""
  return mean(jnp.sum(jax.scipy.special.entr(p_NE), axis=-1), real_N)


def load(gates_NE):
  """Returns [E], the share of all choices that goes to each expert; zeros if nothing is chosen."""
  count_E = jnp.sum(gates_NE != 0, axis=0, dtype=jnp.float32)
  return count_E / jnp.maximum(jnp.sum(count_E), 1.0)


def balance_stats(gates_NE) -> dict[str, jax.Array]:
  """Returns the largest and smallest load, and max_violation = E times the largest minus 1, 0 at balance."""
  load_E = jax.lax.stop_gradient(load(gates_NE))
  return dict(load_max=jnp.max(load_E), load_min=jnp.min(load_E),
              max_violation=jnp.max(load_E) * load_E.size - 1.0)


def make(factory, experts: int, tokens: int, train: bool) -> nn.Module:
  """Returns the router called "router" of the module that calls this, told what it cannot know itself.

  Args:
    factory: of the router, with the fields that the config gives it.
    experts: E of the module.
    tokens: per row of the batch, for a router that is `per_row`.
    train: for a router that has the field.

  Raises:
    ValueError: the config gives the router another number of experts.
  """
  given = getattr(factory, "keywords", {}).get("experts", experts)
  if given != experts:
    raise ValueError(f"experts={experts} has a router for experts={given}; set the number beside it, not in it.")
  made, fields = factory(parent=None), dict(experts=experts, name="router")
  if getattr(made, "per_row", False):
    fields["tokens"] = tokens
  if hasattr(made, "train"):
    fields["train"] = train
  return factory(**fields)


def show(module: nn.Module, router: nn.Module, routing: Routing, **more) -> None:
  """Sows losses into "losses" with the router's weights, and into "metrics" as they are, with stats and load.

  Gates and what is in `more` are also shown to who looks at the layer: layers/probe.py.
  """
  if module.is_initializing():
    return
  for name, value in routing.losses.items():
    module.sow("losses", name, getattr(router, f"{name}_weight") * value)
    module.sow("metrics", f"{name}_loss", value)
  for name, value in {**balance_stats(routing.gates_NE), **routing.stats, **more}.items():
    module.sow("metrics", name, value)
  probe.show(module, "gates_NE", lambda: routing.gates_NE)
  for name, value in more.items():
    probe.show(module, name, lambda value=value: value)


class ExpertKernel(nn.Module):
  """One matrix per expert, each drawn like the kernel of a Dense.

  Attributes:
    shape: [experts, inputs, outputs].
  """

  shape: tuple[int, int, int]

  @nn.compact
  def __call__(self):
    return self.param("kernel", nn.initializers.lecun_normal(batch_axis=(0,)), self.shape)
