"""Gates that begin dense and end sparse, by a temperature; and the activation gate, whose logits bend first.

    gates = softmax((f(x W) + b) / tau)        f identity: dense-to-sparse gate; f = gelu, sigmoid, tanh: activation gate

tau falls geometrically from `tau` to `last` over `steps` training batches, or with steps = 0 is
learned as exp(t). As tau -> 0 the gate is an argmax. All experts are computed whatever tau is. The
step is counted in the collection "moe_state".

Reference: Nguyen et al., "Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?", 2024;
the schedule is Nie et al., "EvoMoE", 2022, without its threshold.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import routing
from layers.activations import activation

# Dims: N tokens, D model width, E experts.


def temperature(step, first: float, last: float, steps: int):
  """Returns tau after `step` of `steps` batches, constant at `last` from then on."""
  return first * (last / first) ** jnp.minimum(step / steps, 1.0)


class DenseToSparse(nn.Module):
  """The router.

  Attributes:
    experts: E.
    activation: f, a name of layers/activations.py.
    tau: temperature at first.
    last: temperature at the end of the schedule.
    steps: training batches of the schedule; 0 learns the temperature instead.
    train: whether steps are counted.
  """

  experts: int = 8
  activation: str = "identity"
  tau: float = 2.0
  last: float = 0.3
  steps: int = 1000
  train: bool = False

  @nn.compact
  def __call__(self, x_ND, carry=None, real_N=None):
    if self.tau <= 0 or self.last <= 0:
      raise ValueError(f"tau={self.tau} and last={self.last} must be above 0; a softmax divides by them.")
    z_NE = activation(self.activation)(routing.linear(self.experts, "logits")(x_ND.astype(jnp.float32)))
    z_NE += self.param("bias", nn.initializers.zeros, (self.experts,))[None]
    if self.steps:
      step = self.variable("moe_state", "step", jnp.zeros, ())
      tau = temperature(step.value, self.tau, self.last, self.steps)
      if self.train and not self.is_initializing() and self.is_mutable_collection("moe_state"):
        step.value = step.value + 1.0
    else:
      tau = jnp.exp(self.param("log_tau", nn.initializers.constant(math.log(self.tau)), ()))
    gates_NE = jax.nn.softmax(z_NE / tau)
    stats = dict(router_entropy=routing.entropy(gates_NE, real_N), temperature=tau)
    return routing.Routing(gates_NE, None, {}, stats, carry)
