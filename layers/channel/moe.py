"""A mixture of experts as a channel mixer: a router weighs gated linear units for each token.

    y_n = sum_e gates[n, e] GLU_e(x_n) + GLU_shared(x_n)

The router is a layer of its own, a file of layers/moe, and how tokens reach their experts is
layers/moe/dispatch.py. Losses of the router are sown into "losses" times the router's
`<name>_weight`, and as they are into "metrics", with

    load_max, load_min  largest and smallest share of the choices that one expert gets
    max_violation       E load_max - 1: 0 is balance, E / K - 1 the worst
    dropped             share of the choices that found their expert full

The training step of 12 scanned layers of experiments/moe_balance.py with "dropless" compiled in 9.4 CPU seconds,
18 by the clock with two cores at a load of 8 (2026-11-21).

References: Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts
Layer", 2017; Dai et al., "DeepSeekMoE", 2024 (shared experts).
"""

from collections.abc import Callable

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from layers.activations import activation
from layers.dense import Dense
from layers.moe import dispatch
from layers.moe.gshard import GShard
from layers.routing import ExpertKernel, make, only, show

# Dims: B batch, T tokens, N = B T, D model width, E experts, F hidden width.

DISPATCH = ("dense", "capacity", "dropless", "expert_parallel")
TINY = dict(experts=4)


class MoE(nn.Module):
  """The mixture.

  Attributes:
    router: factory of the router; it is given `experts` and `name`.
    experts: E.
    hidden: F of each expert; 0 means `expansion` times the width, rounded to a multiple of 8.
    expansion: F / D where hidden is 0.
    shared_experts: number of experts that every token uses, with weight 1.
    dispatch: "dense", "capacity", "dropless" or "expert_parallel": "capacity", split over a mesh with an axis "expert"
      where there is one and its devices divide the tokens.
    capacity_factor: slots of an expert over its even share; for "capacity" and "expert_parallel".
    priority: who is served first there: "position" or "gate".
    activation: a name of layers/activations.py, on the gate branch.
    train: handed to the router: noise is drawn, balances are updated.
    dtype: dtype of the experts; routers are float32.
  """

  router: Callable[..., nn.Module] = GShard
  experts: int = 8
  hidden: int = 0
  expansion: float = 8 / 3
  shared_experts: int = 0
  dispatch: str = "dense"
  capacity_factor: float = 1.25
  priority: str = "position"
  activation: str = "silu"
  train: bool = False
  dtype: jnp.dtype = jnp.float32

  takes_real = True

  @property
  def uses_context(self) -> bool:
    """Whether the router carries something from layer to layer."""
    return getattr(self.router(parent=None), "needs_carry", False)

  @property
  def mixes_tokens(self) -> bool:
    """Whether what becomes of a token depends on others: by the router, or by full buffers."""
    own = getattr(self.router(parent=None), "mixes_tokens", False)
    return own or self.dispatch in ("capacity", "expert_parallel")

  def init_carry(self, batch: int, tokens: int):
    """Returns the router's carry before the first layer."""
    return {"router": self.router(parent=None).init_carry(batch * tokens)}

  @nn.compact
  def __call__(self, x_BTD, context=None, real_BT=None):
    """Returns y_BTD, or (y_BTD, context) if the router needs a carry; tokens that are not real get nothing added."""
    B, T, D = x_BTD.shape
    if self.experts < 1:
      raise ValueError(f"experts={self.experts} must be at least 1.")
    router, carry = make(self.router, self.experts, T, self.train), None
    if self.uses_context:
      if context is None or "router" not in context.carry:
        raise ValueError(f"router={type(router).__name__} needs a carry from layer to layer, and none was given: "
                         "use it inside layers/stack.py, which threads one, or take another router.")
      carry = context.carry["router"]
    x_ND = rearrange(x_BTD, "b t d -> (b t) d")
    real_N = None if real_BT is None else real_BT.reshape(-1)
    routing = router(x_ND, carry, real_N)
    routing = routing._replace(gates_NE=only(routing.gates_NE, real_N))
    y_ND, dropped = self._mix(x_ND.astype(self.dtype), routing, self._weights(D))
    show(self, router, routing, dropped=dropped)
    y_BTD = rearrange(y_ND, "(b t) d -> b t d", b=B).astype(self.dtype)
    if self.shared_experts:
      y_BTD += _Shared(self.shared_experts * self._hidden(D), self.activation, self.dtype, name="shared")(x_BTD)
    if self.uses_context:
      return y_BTD, context.replace(carry=context.carry | {"router": routing.carry})
    return y_BTD

  def _hidden(self, D):
    return self.hidden or max(8, 8 * round(self.expansion * D / 8))

  def _weights(self, D):
    E, F = self.experts, self._hidden(D)
    kernel = lambda name, *shape: ExpertKernel((E, *shape), name=name)().astype(self.dtype)
    return kernel("experts_gate", D, F), kernel("experts_up", D, F), kernel("experts_down", F, D)

  def _mix(self, x_ND, routing, weights):
    if self.dispatch not in DISPATCH:
      raise ValueError(f"dispatch={self.dispatch!r} is unknown; choose from {', '.join(DISPATCH)}.")
    run, limits = getattr(dispatch, self.dispatch), {}
    if self.dispatch in ("capacity", "expert_parallel"):
      limits = dict(factor=self.capacity_factor, priority=self.priority)
    if self.dispatch == "expert_parallel":
      mesh = jax.sharding.get_abstract_mesh()
      if "expert" in mesh.axis_names and x_ND.shape[0] % dispatch.shards(mesh) == 0:
        limits["mesh"] = mesh
      else:  # a layer by itself, or the few tokens of decoding
        run = dispatch.capacity
    return run(x_ND, routing, weights, activation=self.activation, **limits)


class _Shared(nn.Module):
  """The gated linear unit that all tokens use: several shared experts side by side are one wide one."""

  hidden: int
  activation: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTD):
    dense = lambda width, name: Dense(width, use_bias=False, dtype=self.dtype, name=name)
    gate_BTF = activation(self.activation)(dense(self.hidden, "gate")(x_BTD))
    return dense(x_BTD.shape[-1], "down")(gate_BTF * dense(self.hidden, "up")(x_BTD))
