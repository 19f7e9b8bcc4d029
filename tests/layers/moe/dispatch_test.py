"""The four executions of a mixture agree, in value and in every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.moe import dispatch
from layers.routing import Routing

# Dims: N tokens, D model width, F hidden width, E experts, K experts per token.

N, D, F, E, K = 16, 6, 5, 8, 2
VALUE, GRADIENT = 1e-6, 4e-6  # absolute; values are of order 1, gradients of order 10


def _inputs(seed, indices_NK=None):
  """Returns (x_ND, logits_NE that decide the gates, indices_NK, weights)."""
  draw = np.random.default_rng(seed)
  normal = lambda *shape: draw.standard_normal(shape).astype(np.float32)
  if indices_NK is None:
    indices_NK = np.argsort(draw.random((N, E)), axis=1)[:, :K]
  weights = normal(E, D, F) / D**0.5, normal(E, D, F) / D**0.5, normal(E, F, D) / F**0.5
  return normal(N, D), normal(N, E), np.asarray(indices_NK, np.int32), weights


def _routing(logits_NE, indices_NK):
  hot_NE = jnp.sum(jax.nn.one_hot(indices_NK, E), axis=1)
  return Routing(jax.nn.softmax(logits_NE) * hot_NE, indices_NK, {}, {})


def _out_and_gradients(execute):
  """Jits x, logits, indices, weights -> (y, dropped), gradients for x, logits and the three kernels."""
  def score(x_ND, logits_NE, weights, indices_NK):
    y_ND, dropped = execute(x_ND, _routing(logits_NE, indices_NK), weights)
    return jnp.sum(jnp.sin(y_ND)), (y_ND, dropped)
  grads = jax.jit(jax.grad(score, argnums=(0, 1, 2), has_aux=True))
  return lambda x, logits, indices, weights: grads(x, logits, weights, indices)[::-1]


@functools.cache
def _mesh():
  return jax.make_mesh((4,), ("expert",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))


def _parallel(x_ND, routing, weights, factor=float(E)):
  return dispatch.expert_parallel(x_ND, routing, weights, mesh=_mesh(), factor=factor)


def _form(form):
  """A form of `dropless` as the whole of it; a CPU chooses one, other devices the other."""
  return lambda x_ND, routing, weights: (form(x_ND, routing.gates_NE, routing.indices_NK, weights), 0.0)


RUN = {
    "dense": _out_and_gradients(dispatch.dense),
    "capacity": _out_and_gradients(functools.partial(dispatch.capacity, factor=float(E))),
    "capacity_1": _out_and_gradients(functools.partial(dispatch.capacity, factor=1.0)),
    "dropless": _out_and_gradients(dispatch.dropless),
    "grouped": _out_and_gradients(_form(dispatch.grouped)),
    "expert_parallel": _out_and_gradients(_parallel),
}
EXACT = ["capacity", "dropless", "grouped", "expert_parallel"]


def _gap(got, want):
  return max(float(np.max(np.abs(np.asarray(g, np.float64) - np.asarray(w, np.float64))))
             for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))


def _by_hand(x, logits, indices, weights):
  """The sum over a token's experts, token by token in float64."""
  x, logits, *weights = (np.asarray(a, np.float64) for a in (x, logits, *weights))
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  y = np.zeros_like(x)
  for n in range(len(x)):
    for e in indices[n]:
      gate, up, down = (w[e] for w in weights)
      h = x[n] @ gate
      y[n] += p[n, e] * ((h / (1 + np.exp(-h)) * (x[n] @ up)) @ down)
  return y


def test_dense_is_the_weighted_sum_token_by_token():
  args = _inputs(0)
  assert _gap(RUN["dense"](*args)[0][0], _by_hand(*args)) < VALUE


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("indices_NK", [None, [[3, 4]] * N, [[e % 3, 3 + e % 2] for e in range(N)]],
                         ids=["spread", "all_on_two", "three_experts_empty"])
def test_every_execution_is_the_dense_one(name, indices_NK):
  args = _inputs(1, indices_NK)
  (y, dropped), grads = RUN[name](*args)
  (want, _), want_grads = RUN["dense"](*args)
  assert _gap(y, want) < VALUE and _gap(grads, want_grads) < GRADIENT and dropped == 0


@pytest.mark.parametrize("name", EXACT)
def test_an_empty_expert_has_gradient_zero(name):
  args = _inputs(2, [[3, 4]] * N)
  _, (_, _, kernels) = RUN[name](*args)
  for kernel in kernels:
    assert np.all(np.delete(np.asarray(kernel), [3, 4], axis=0) == 0) and np.all(np.isfinite(kernel))
    assert np.any(np.asarray(kernel)[[3, 4]] != 0)


@pytest.mark.parametrize("name", ["dropless", "grouped"])
def test_dropless_does_not_know_the_order_of_tokens(name):
  x, logits, indices, weights = _inputs(3)
  shuffle = np.random.default_rng(4).permutation(N)
  (y, _), _ = RUN[name](x, logits, indices, weights)
  (moved, _), _ = RUN[name](x[shuffle], logits[shuffle], indices[shuffle], weights)
  np.testing.assert_array_equal(moved, np.asarray(y)[shuffle])


@pytest.mark.parametrize("name", ["dense", "dropless", "capacity_1"])
def test_the_names_of_experts_mean_nothing(name):
  x, logits, indices, weights = _inputs(5)
  new = np.random.default_rng(6).permutation(E)  # expert new[i] is called i now
  called = np.argsort(new).astype(np.int32)
  (y, dropped), _ = RUN[name](x, logits, indices, weights)
  (renamed, also), _ = RUN[name](x, logits[:, new], called[indices], tuple(w[new] for w in weights))
  assert _gap(renamed, y) < VALUE and dropped == also


def test_at_factor_1_an_uneven_batch_drops_what_does_not_fit():
  x, logits, indices, weights = _inputs(7, [[0, 1 + n % 7] for n in range(N)])
  (y, dropped), _ = RUN["capacity_1"](x, logits, indices, weights)
  C = dispatch.slots(N, K, E, 1.0)
  assert C == 4
  counts = np.bincount(indices.reshape(-1), minlength=E)
  np.testing.assert_allclose(dropped, np.sum(np.maximum(counts - C, 0)) / (N * K), rtol=1e-6)
  # Queues are in order of position: only the first four tokens still have expert 0.
  alone = np.where(np.arange(N)[:, None] < C, indices, indices[:, 1:])
  want = _by_hand(x, logits, indices, weights)
  assert _gap(y[:C], want[:C]) < VALUE
  only = [_by_hand(x[n:n + 1], logits[n:n + 1], alone[n:n + 1, :1], weights)[0] for n in range(C, N)]
  assert _gap(y[C:], np.stack(only)) < VALUE


def test_a_token_that_is_dropped_everywhere_gets_zero():
  args = _inputs(8, [[0, 1]] * N)
  (y, dropped), _ = RUN["capacity_1"](*args)
  assert np.all(np.asarray(y)[4:] == 0) and np.all(np.asarray(y)[:4] != 0) and dropped == 0.75


def test_first_choices_are_served_before_second_ones():
  """Token 0 asks for expert 0 second; eight tokens that ask for it first fill its four slots."""
  args = _inputs(9, [[1 + n % 7, 0] if n < 8 else [0, 1 + n % 7] for n in range(N)])
  x, logits, indices, weights = args
  (y, _), _ = RUN["capacity_1"](*args)
  first = np.stack([_by_hand(x[n:n + 1], logits[n:n + 1], indices[n:n + 1, :1], weights)[0] for n in range(N)])
  assert _gap(y[0], first[0]) < VALUE
  assert np.max(np.abs(y[8] - first[8])) > 1e-3


def test_priority_by_gate_serves_the_surest_tokens():
  x, logits, indices, weights = _inputs(10, [[0, 1]] * N)
  run = jax.jit(functools.partial(dispatch.capacity, factor=1.0, priority="gate"))
  y, _ = run(x, _routing(logits, indices), weights)
  gates = np.max(np.asarray(_routing(logits, indices).gates_NE), axis=1)
  assert set(np.flatnonzero(np.any(np.asarray(y) != 0, axis=1))) == set(np.argsort(-gates)[:4])


def test_a_varying_number_of_experts_fits_into_buffers():
  x, logits, _, weights = _inputs(11)
  gates = np.where(logits > 0.5, np.abs(logits), 0).astype(np.float32)
  routing = Routing(jnp.asarray(gates), None, {}, {})
  y, dropped = jax.jit(functools.partial(dispatch.capacity, factor=float(E)))(x, routing, weights)
  want, _ = jax.jit(dispatch.dense)(x, routing, weights)
  assert _gap(y, want) < VALUE and dropped == 0
  assert len(set((gates != 0).sum(1))) > 2


def test_expert_parallel_sends_tokens_twice_forward_and_twice_backward():
  args = _inputs(12)
  forward = jax.jit(lambda x, logits, indices, weights: _parallel(x, _routing(logits, indices), weights)[0])
  backward = jax.jit(jax.grad(lambda *args: jnp.sum(jnp.sin(forward(*args))), argnums=(0, 1, 3)))
  split = jax.sharding.NamedSharding(_mesh(), jax.sharding.PartitionSpec("expert"))
  args = jax.device_put(args, split)
  count = lambda f: f.lower(*args).compile().as_text().count(" all-to-all(")
  assert (count(forward), count(backward)) == (2, 4)


def test_the_capacity_is_the_even_share_times_the_factor_rounded_up():
  assert [dispatch.slots(*given) for given in [(16, 2, 8, 1.0), (16, 1, 3, 1.0), (16, 2, 8, 1.25), (16, 2, 8, 99.0)]] == [
      4, 6, 5, 16]


def _refused(execute, indices=True):
  x, logits, indices_NK, weights = _inputs(13)
  routing = _routing(logits, indices_NK)
  execute(x, routing if indices else routing._replace(indices_NK=None), weights)


def test_what_cannot_run_is_refused_with_the_numbers():
  with pytest.raises(ValueError, match=r"capacity_factor=0.0 leaves 16 tokens x 2 choices on 8 experts.*above 0"):
    _refused(functools.partial(dispatch.capacity, factor=0.0))
  with pytest.raises(ValueError, match=r"dropless.*fixed number.*'dense' or 'capacity'"):
    _refused(dispatch.dropless, indices=False)
  with pytest.raises(ValueError, match=r"priority='age' is unknown; choose from position, gate"):
    _refused(functools.partial(dispatch.capacity, factor=1.0, priority="age"))
  three = jax.make_mesh((3,), ("expert",), devices=jax.devices()[:3], axis_types=(jax.sharding.AxisType.Auto,))
  with pytest.raises(ValueError, match=r"experts=8 must be a multiple of the 3 devices of mesh axis 'expert'"):
    _refused(functools.partial(dispatch.expert_parallel, mesh=three, factor=1.0))
  with pytest.raises(ValueError, match=r"needs a mesh with an axis 'model', this one has expert"):
    _refused(functools.partial(dispatch.expert_parallel, mesh=three, axis="model", factor=1.0))
