"""Tied layers: the shared stack is the plain one with tied weights, and at full rank it is any plain one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.channel.mlp import MLP
from layers.convert import growth
from layers.depth import sharing
from layers.norms.rms_norm import RMSNorm
from layers.placement import placement
from layers.stack import Stack
from tests.layers import toy

B, T, D, L, FULL = 2, 3, 4, 6, 9
SHARES = ("cycle:2", "sequence:3", "middle_cycle:2", "cycle:1")
# Layer l -> the first layer that it shares with, by hand.
OWNERS = {"cycle:2": (0, 1, 0, 1, 0, 1), "sequence:3": (0, 0, 2, 2, 4, 4), "middle_cycle:2": (0, 1, 2, 1, 2, 5),
          "cycle:1": (0, 0, 0, 0, 0, 0)}
X = np.random.default_rng(0).standard_normal((B, T, D), np.float32)


def _stack(share="", rank=0, scan=True):
  return Stack((toy.Mean,) * L, functools.partial(MLP, hidden=FULL, bias=True), RMSNorm, placement("pre", L), scan=scan,
               share=share, lora_rank=rank)


@functools.cache
def _run(share="", rank=0, scan=True):
  stack = _stack(share, rank, scan)
  bent = lambda params: jnp.sum(jnp.sin(stack.apply({"params": params}, X)[0]))
  return jax.jit(jax.value_and_grad(bent))


def _flat(layers, final):
  return {"final_norm": final} | {f"layers_{i}_to_{i}": {"block_0": layer} for i, layer in enumerate(layers)}


def _untied(share, rank, params):
  """Returns the layers of the plain stack that a shared one is, as the unrolled stack names them."""
  runs = _stack(share, rank).runs()
  full = {run.name: sharing.untie(params[run.name], run.repeats) if run.repeats > 1 else params[run.name]
          for run in runs}
  return _flat(growth.layers_of(full, runs), params["final_norm"])


@pytest.mark.parametrize("share", ("cycle:2", "middle_cycle:2"))
def test_shared_and_scanned_is_untied_and_unrolled(share):
  params = toy.parameters(_stack(share, 2), 1, X)
  value, slopes = _run(share, 2)(params)
  want, dfull = _run(scan=False)(_untied(share, 2, params))
  np.testing.assert_allclose(value, want, rtol=1e-5)
  # The gradient of a shared matrix is the sum over its layers; that is what a vector-Jacobian product says.
  pulled, = jax.vjp(functools.partial(_untied, share, 2), params)[1](dfull)
  jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-5), slopes, pulled)


@pytest.mark.parametrize("share", SHARES)
def test_layers_share_matrices_with_their_owner_and_keep_their_own_norms(share):
  params = toy.parameters(_stack(share), 2, X)
  layers = [_untied(share, 0, params)[f"layers_{i}_to_{i}"]["block_0"] for i in range(L)]
  for i, owner in enumerate(OWNERS[share]):
    for j in range(i):
      same = np.array_equal(layers[i]["channel"]["up"]["kernel"], layers[j]["channel"]["up"]["kernel"])
      assert same == (owner == OWNERS[share][j])
      assert np.any(layers[i]["mixer_pre_norm"]["scale"] != layers[j]["mixer_pre_norm"]["scale"])


def test_parameters_do_not_grow_with_depth_but_for_vectors():
  count = lambda stack: sum(p.size for p in jax.tree.leaves(jax.eval_shape(stack.init, jax.random.key(0), X)))
  vectors = 2 * D + FULL + D  # two gains, two biases
  assert count(_stack("cycle:1")) == (count(_stack()) - L * vectors - D) // L + L * vectors + D


def test_full_rank_ties_nothing():
  plain = _stack()
  params = toy.parameters(plain, 3, X)
  layers, runs = growth.layers_of(params, plain.runs()), _stack("cycle:2", FULL).runs()
  for start in ("average", "lower"):
    tied = growth.tied(layers, runs, FULL, start) | {"final_norm": params["final_norm"]}
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=2e-6), _untied("cycle:2", FULL, tied),
                 _flat(layers, params["final_norm"]))


def test_the_error_of_a_rank_is_what_it_leaves_out():
  draw = np.random.default_rng(4)
  tree = {"up": {"kernel": draw.standard_normal((3, 5, 4)), "bias": draw.standard_normal((3, 4))}}
  rest = tree["up"]["kernel"] - tree["up"]["kernel"].mean(0)
  for rank in range(5):
    back = sharing.untie(sharing.tie(tree, rank), 3)
    got = np.square(tree["up"]["kernel"] - back["up"]["kernel"]).sum((1, 2))
    left = np.square(np.linalg.svd(rest, compute_uv=False)[:, rank:]).sum(-1)
    np.testing.assert_allclose(got, left, rtol=1e-4, atol=1e-8)
    np.testing.assert_array_equal(back["up"]["bias"], tree["up"]["bias"].astype(np.float32))


def test_layers_that_are_alike_are_tied_without_loss():
  tree = {"out": {"kernel": np.random.default_rng(5).standard_normal((1, 2, 3, 4)).repeat(3, 0)}}
  back = sharing.untie(sharing.tie(tree, 0), 3)
  np.testing.assert_allclose(back["out"]["kernel"], tree["out"]["kernel"], rtol=1e-6)


def test_a_fresh_stack_starts_tied_and_every_factor_learns():
  stack = _stack("cycle:2", 2)
  params = jax.jit(stack.init)(jax.random.key(6), X)["params"]
  node = params["scan_0_to_5"]["block_0"]["channel"]["up"]
  full = sharing.untie(node, 3)["kernel"]
  np.testing.assert_array_equal(full, np.broadcast_to(node["kernel"], full.shape))
  slopes = _run("cycle:2", 2)(params)[1]["scan_0_to_5"]["block_0"]["channel"]["up"]
  assert np.all(np.any(slopes["kernel_lora_up"] != 0, axis=(1, 2)))
  assert np.all(np.any(node["kernel_lora_down"] != 0, axis=(1, 2)))


@pytest.mark.parametrize("share, fields, says", [
    ("circle:2", {}, "share='circle:2' must be one of cycle, sequence"),
    ("cycle:4", {}, "share='cycle:4' makes 4 blocks serve 6 of depth=6 layers"),
    ("middle_cycle:3", {}, "serve 4 of depth=6"),
    ("cycle:2", dict(scan=False), "set scan=True"),
    ("", dict(rank=2), "lora_rank=2 must be at least 0, and 0 where share='' ties no layers")])
def test_what_cannot_be_shared_is_refused_with_the_numbers(share, fields, says):
  with pytest.raises(ValueError, match=says):
    _stack(share, **fields).runs()
