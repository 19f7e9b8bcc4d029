"""A dense unit cut into experts: their sum is the unit, and the router learns who comes nearest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.channel.factored_glu import FactoredGLU
from layers.channel.glu import GLU
from layers.convert import factor_ffn
from tests.layers import toy

N, D, F, E = 5, 4, 12, 3
X = np.random.default_rng(0).standard_normal((N, D), np.float32)
LAYER = GLU(hidden=F)
PARAMS = toy.parameters(LAYER, 1, X[None])
WEIGHTS = factor_ffn.split(PARAMS, E)
experts, loss = jax.jit(factor_ffn.experts), jax.jit(factor_ffn.prior_approximate_loss, static_argnums=3)


def test_the_sum_of_all_experts_is_the_dense_unit():
  want = LAYER.apply({"params": PARAMS}, X[None])[0]
  np.testing.assert_allclose(experts(WEIGHTS, X).sum(0), want, rtol=1e-5, atol=1e-5)
  all_of_them = factor_ffn.combine(experts(WEIGHTS, X), np.zeros((N, E), np.float32), E)
  np.testing.assert_allclose(all_of_them, want, rtol=1e-5, atol=1e-5)


def test_the_chosen_experts_are_scaled_to_the_whole():
  y = np.asarray(experts(WEIGHTS, X))
  logits = np.tile(np.float32([0.0, 2.0, 1.0]), (N, 1))
  np.testing.assert_allclose(factor_ffn.combine(y, logits, 2), 1.5 * (y[1] + y[2]), rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_divergence_written_out():
  draw = np.random.default_rng(2)
  y, teacher = np.asarray(experts(WEIGHTS, X)), draw.standard_normal((N, D), np.float32)
  logits = draw.standard_normal((N, E), np.float32)
  total = 0.0
  for n in range(N):
    miss = [np.mean((y[e, n] - 2 / 3 * teacher[n]) ** 2) for e in range(E)]
    label = np.where(np.argsort(np.argsort(miss)) < 2, np.e, 1.0)
    p, q = np.exp(logits[n]) / np.exp(logits[n]).sum(), label / label.sum()
    total += np.sum(p * np.log(p / q))
  np.testing.assert_allclose(loss(y, teacher, logits, 2), total / N, rtol=1e-5)


def test_a_router_that_says_the_label_has_no_loss_and_no_gradient():
  y = np.zeros((E, N, D), np.float32)
  y[0] = 9.0  # far from a teacher of 0
  label = np.tile(np.float32([0, 1, 1]), (N, 1))
  value, slope = jax.value_and_grad(loss, argnums=2)(y, np.zeros((N, D), np.float32), label, 2)
  np.testing.assert_allclose([value, np.abs(slope).max()], 0, atol=1e-6)


@functools.cache
def _cut(top_k, prior_weight=0.0):
  """Returns (a layer of experts, its variables: those of the dense unit, with a drawn router)."""
  layer = FactoredGLU(hidden=F, experts=E, top_k=top_k, prior_weight=prior_weight)
  drawn = jax.jit(layer.init)(jax.random.key(3), X[None])
  params = factor_ffn.cut({"channel": PARAMS}, {"channel": drawn["params"]})["channel"]
  return layer, {"params": params, factor_ffn.TEACHER: factor_ffn.teacher_of(params, drawn[factor_ffn.TEACHER])}


def test_a_layer_of_all_experts_is_the_dense_unit():
  layer, variables = _cut(E)
  want = LAYER.apply({"params": PARAMS}, X[None])
  np.testing.assert_allclose(jax.jit(layer.apply)(variables, X[None]), want, rtol=1e-5, atol=1e-5)


def test_the_layer_is_the_sum_of_the_experts_that_its_router_takes():
  layer, variables = _cut(2, prior_weight=0.5)
  y, sown = jax.jit(functools.partial(layer.apply, mutable=["losses", "metrics"]))(variables, X[None])
  logits = X @ variables["params"]["router"]["kernel"]
  parts, top = np.asarray(experts(WEIGHTS, X)), np.argsort(-logits, axis=1)[:, :2]
  want = [E / 2 * sum(parts[e, n] for e in top[n]) for n in range(N)]
  np.testing.assert_allclose(y[0], want, rtol=1e-5, atol=1e-5)
  prior = loss(parts, parts.sum(0), logits, 2)  # the teacher of a unit just cut is the unit
  np.testing.assert_allclose(sown["losses"]["prior"][0], 0.5 * prior, rtol=1e-5)
  near = np.argsort(np.mean((parts - 2 / E * parts.sum(0)) ** 2, axis=2), axis=0)[:2].T
  same = np.mean([len({*a} & {*b}) / 2 for a, b in zip(near.tolist(), top.tolist())])
  np.testing.assert_allclose(sown["metrics"]["agreement"][0], same, rtol=1e-6)


def test_only_the_loss_of_the_prior_reaches_the_router_and_nothing_reaches_the_teacher():
  layer, variables = _cut(2, prior_weight=1.0)
  def slopes(pick):
    def total(variables):
      y, sown = layer.apply(variables, X[None], mutable=["losses"])
      return pick(jnp.sum(jnp.sin(y)), sown["losses"]["prior"][0])
    return jax.jit(jax.grad(total))(variables)
  of_y, of_prior = slopes(lambda y, prior: y), slopes(lambda y, prior: prior)
  moved = lambda tree: {name for name, part in tree.items() if any(np.any(leaf) for leaf in jax.tree.leaves(part))}
  assert moved(of_y["params"]) == {"experts_gate", "experts_up", "experts_down"}
  assert moved(of_prior["params"]) == {"router"}
  assert not moved(of_y[factor_ffn.TEACHER]) and not moved(of_prior[factor_ffn.TEACHER])


def test_sizes_that_do_not_divide_are_refused_with_the_numbers():
  with pytest.raises(ValueError, match="experts=5 must divide the hidden width 12"):
    factor_ffn.split(PARAMS, 5)
  with pytest.raises(ValueError, match="experts=5 must divide the hidden width 12"):
    jax.eval_shape(FactoredGLU(hidden=F, experts=5).init, jax.random.key(0), X[None])
  with pytest.raises(ValueError, match="top_k=4 must be from 1 to experts=3"):
    factor_ffn.chosen(X[:, :E], 4)
  with pytest.raises(ValueError, match="bias=True"):
    factor_ffn.split(PARAMS | {"down": PARAMS["down"] | {"bias": X[0]}}, E)
