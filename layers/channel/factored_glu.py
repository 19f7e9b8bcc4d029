r"""A gated linear unit cut into experts, of which a router takes a fixed number for each token: FactorLLM.

    y = (E / K) sum of expert_e(x) over the K largest of x W_r        expert_e: part e of gate, up and down
    t = sum_e teacher_e(x)        the dense unit that the experts were cut from, never trained
    label = 1 for the K experts with the smallest mean_D (expert_e(x) - K t / E)^2, else 0
    prior = mean over tokens of KL(softmax(x W_r) || softmax(label))

The choice is hard, so that only `prior`, sown into "losses" times `prior_weight`, trains the router. The weights of the
teacher are the experts' first ones, a copy in the collection "teacher", which no optimizer sees: the growth
"factor" of research/growth.py fills both from a trained unit, and a fresh layer has a teacher of zeros. `agreement` is
the share of a token's experts that its label names as well; K / E is chance.

Departures: the teacher reads the tokens of this layer, where the paper's is a model of its own and reads what its own
layers made; there is no balance loss, and no distillation of the teacher's logits. All experts are computed, as the
label needs them, so that nothing is saved here.

Reference: Zhao et al., "FactorLLM: Factorizing Knowledge via Mixture of Experts for Large Language Models", 2024.
"""

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import routing
from layers.convert import factor_ffn

# Dims: B batch, T tokens, N = B T, D model width, F hidden width of an expert, E experts, K experts per token.

TINY = dict(experts=3, top_k=2)


class FactoredGLU(nn.Module):
  """The experts, their router and their teacher.

  Attributes:
    hidden: E F, of all experts together; 0 means `expansion` times the width, rounded to a multiple of 8.
    expansion: E F / D where hidden is 0.
    activation: a name of layers/activations.py, on the gate.
    experts: E, a divisor of hidden.
    top_k: K; with all E the layer is the dense unit.
    prior_weight: of the loss that trains the router; at 0 the router stays as it was drawn.
    dtype: dtype of the experts; the router is float32.
  """

  hidden: int = 0
  expansion: float = 8 / 3
  activation: str = "silu"
  experts: int = 4
  top_k: int = 2
  prior_weight: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    B, _, D = x_BTD.shape
    E, K = self.experts, self.top_k
    F = factor_ffn.part(self.hidden or max(8, 8 * round(self.expansion * D / 8)), E)
    routing.check_top_k(K, E)
    shapes = dict(gate_EDF=(E, D, F), up_EDF=(E, D, F), down_EFD=(E, F, D))
    own = {name: routing.ExpertKernel(shape, name=factor_ffn.of_experts(name))() for name, shape in shapes.items()}
    first = {name: self.variable(factor_ffn.TEACHER, name, jnp.zeros, shape).value for name, shape in shapes.items()}

    x_ND = rearrange(x_BTD, "b t d -> (b t) d")
    logits_NE = routing.linear(E, "router")(x_ND.astype(jnp.float32))
    y_END, teacher_END = (self._experts(weights, x_ND) for weights in (own, first))
    y_ND = factor_ffn.combine(y_END, logits_NE, K)
    t_ND, chosen_NE = jnp.sum(teacher_END, axis=0), factor_ffn.chosen(logits_NE, K)
    agreement = jnp.mean(jnp.sum(chosen_NE * factor_ffn.label(y_END, t_ND, K), axis=-1)) / K
    losses = dict(prior=factor_ffn.prior_approximate_loss(y_END, t_ND, logits_NE, K))
    routing.show(self, self, routing.Routing(E / K * chosen_NE, None, losses, dict(agreement=agreement)))
    return rearrange(y_ND, "(b t) d -> b t d", b=B)

  def _experts(self, weights, x_ND):
    weights = {name: kernel.astype(self.dtype) for name, kernel in weights.items()}
    return factor_ffn.experts(weights, x_ND.astype(self.dtype), self.activation)
