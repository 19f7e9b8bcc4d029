"""Layers simple enough to redo by hand, for tests of what holds layers together."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def parameters(module, seed, *inputs, spread=0.5):
  """Returns normal parameters around zero, gains around one, without compiling an init."""
  draw = np.random.default_rng(seed)
  def normal(path, p):
    centre = 1.0 if path[-1].key == "scale" else 0.0
    return (centre + spread * draw.standard_normal(p.shape)).astype(p.dtype)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  return jax.tree_util.tree_map_with_path(normal, shapes)


def _matrix(module, D):
  return module.param("kernel", nn.initializers.normal(D**-0.5), (D, D))


class Mean(nn.Module):
  """A causal mixer: y_t = W mean_{s <= t} x_s. Its state is the sum and the count."""

  def init_state(self, batch: int, D: int = 4):
    return dict(sum_BD=jnp.zeros((batch, D)), count_B=jnp.zeros(batch))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    B, T, D = x_BTD.shape
    state = self.init_state(B, D) if state is None else state
    sum_BTD = state["sum_BD"][:, None] + jnp.cumsum(x_BTD, axis=1)
    count_BT = state["count_B"][:, None] + jnp.arange(1.0, T + 1)[None]
    y_BTD = (sum_BTD / count_BT[..., None]) @ _matrix(self, D)
    return y_BTD, dict(sum_BD=sum_BTD[:, -1], count_B=count_BT[:, -1])


class Previous(nn.Module):
  """A causal mixer: y_t = W x_{t-1}. Its state is the last token."""

  def init_state(self, batch: int, D: int = 4):
    return jnp.zeros((batch, D))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    B, _, D = x_BTD.shape
    state = self.init_state(B, D) if state is None else state
    line_BSD = jnp.concatenate([state[:, None], x_BTD], axis=1)
    return line_BSD[:, :-1] @ _matrix(self, D), line_BSD[:, -1]


class Ones(nn.Module):
  """A mixer without parameters: `value` everywhere."""

  value: float = 1.0

  def init_state(self, batch: int):
    return jnp.zeros((batch, 0))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    return jnp.full_like(x_BTD, self.value), state


class Tanh(nn.Module):
  """A channel mixer: y = W tanh(x)."""

  @nn.compact
  def __call__(self, x_BTD):
    return jnp.tanh(x_BTD) @ _matrix(self, x_BTD.shape[-1])


class Soft(nn.Module):
  """A norm: y = g x / (1 + mean |x|). Neither idempotent nor scale invariant, so places tell."""

  @nn.compact
  def __call__(self, x, mask=None):
    scale_D = self.param("scale", nn.initializers.ones, x.shape[-1:])
    return scale_D[None, None] * x / (1 + jnp.mean(jnp.abs(x), axis=-1, keepdims=True))


class Counter(nn.Module):
  """A channel mixer with context: feature `layer` receives the number of layers so far."""

  uses_context = True

  def init_carry(self, batch: int, tokens: int):
    return dict(layers_BT=jnp.zeros((batch, tokens)))

  @nn.compact
  def __call__(self, x_BTD, context):
    seen_BT = context.carry["layers_BT"] + 1
    y_BTD = seen_BT[..., None] * jax.nn.one_hot(context.layer, x_BTD.shape[-1])[None, None]
    return y_BTD, context.replace(carry=dict(layers_BT=seen_BT))


class PointwiseStack(nn.Module):
  """Stands in for a residual stack: `function` of each token."""

  function: str = "identity"

  def init_state(self, batch: int):
    return ()

  @nn.compact
  def __call__(self, x_BTD, states=None, segment_ids=None):
    return (jnp.tanh(3 * x_BTD) if self.function == "tanh" else x_BTD), states
