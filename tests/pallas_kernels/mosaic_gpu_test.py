"""The Hopper kernels: lowered for cuda without a GPU, and right in jax's GPU interpreter where it has one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import compat, hopper
from pallas_kernels.chunk_recurrence import (
    backends, explain_backend, gpu, mosaic_gpu, mosaic_gpu_states, reference, triton)
from pallas_kernels.chunk_recurrence.plan import Inputs, Plan
from tests.common.lowering import custom_calls, lower_for_hopper

INTERPRETER = compat.gpu_interpreter()
PLAN = Plan(decay="scalar", delta=False, packed=False, B=1, T=150, H=2, G=1, K=128, V=128, dtype="bfloat16",
            scale=0.1, chunk=64, reverse=False, precision="mixed", save_states="save", forward="", backward="")


def _inputs(plan):
  draw = np.random.default_rng(0)
  normal = lambda dtype, *shape: jnp.asarray(draw.standard_normal(shape, np.float32), dtype)
  tokens = (plan.B, plan.T)
  q, k = normal(plan.dtype, 2, *tokens, plan.G, plan.K)
  width = {"none": None, "scalar": (), "vector": (plan.K,)}[plan.decay]
  g = None if width is None else draw.uniform(-0.2, 0, (*tokens, plan.H, *width)).astype(np.float32)
  beta = draw.uniform(0, 2, (*tokens, plan.H)).astype(np.float32) if plan.delta else None
  state = normal(jnp.float32, plan.B, plan.H, plan.K, plan.V)
  ends = (np.arange(plan.T) >= 100) + 3 * (np.arange(plan.T) >= 130)
  segments = np.broadcast_to(ends, tokens).astype(np.int32) if plan.packed else None
  return Inputs(q, k / 8, normal(plan.dtype, *tokens, plan.H, plan.V), g, beta, state, segments)


@pytest.mark.parametrize("changed", [
    dict(packed=True, reverse=True), dict(decay="none", K=64, V=192, G=2, B=2, T=64),
    dict(delta=True), dict(decay="vector", K=64, reverse=True), dict(decay="vector", delta=True, packed=True, V=64)])
def test_every_kernel_is_lowered_for_hopper(changed):
  plan = dataclasses.replace(PLAN, **changed)
  inputs = _inputs(plan)
  kernels = gpu.hopper_kernels(plan)
  assert kernels.why_not(plan) is None
  forward = lower_for_hopper(functools.partial(kernels.forward, plan), inputs)
  states = jax.ShapeDtypeStruct((plan.chunks, plan.B, plan.H, plan.K, plan.V), jnp.dtype(plan.dtype))
  backward = lower_for_hopper(functools.partial(kernels.backward, plan), inputs, states, inputs.v, inputs.state)
  assert custom_calls(forward) == custom_calls(backward) == ["mosaic_gpu_v2"]


def _relative(got, want):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.skipif(INTERPRETER is None, reason="this jax has no GPU interpreter")
@pytest.mark.parametrize("changed", [
    dict(V=64, chunk=128, packed=True), dict(K=64, V=64, packed=True, reverse=True),
    dict(delta=True, K=64, V=64, T=110, packed=True), dict(decay="vector", V=64, H=1, T=70, reverse=True),
    dict(decay="vector", delta=True, V=64, H=1, T=100, chunk=128),
    pytest.param(dict(decay="none", K=64, H=1, T=64, save_states="recompute"), marks=pytest.mark.slow),
    pytest.param(dict(decay="none", delta=True, H=1, save_states="recompute"), marks=pytest.mark.slow)])
def test_the_emulated_kernels_are_the_reference_and_have_no_races(changed):
  plan = dataclasses.replace(PLAN, **changed)
  inputs = _inputs(plan)
  kernels, emulated = gpu.hopper_kernels(plan), INTERPRETER(detect_races=True)
  o, final, states = jax.jit(functools.partial(kernels.forward, plan, interpret=emulated))(inputs)
  states = states if plan.save_states == "save" else None
  do, dfinal = inputs.v[:, ::-1], inputs.state[:, :, ::-1]
  got = jax.jit(functools.partial(kernels.backward, plan, interpret=emulated))(inputs, states, do, dfinal)

  @jax.jit
  def exact(inputs, do):
    values, pull = jax.vjp(functools.partial(reference.run, plan), inputs)
    return values, pull((do, dfinal))[0]

  wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
  values, want = exact(wide(inputs), wide(do))
  errors = dict(o=_relative(o, values[0]), final=_relative(final, values[1]))
  errors |= {name: _relative(a, b) for name, a, b in zip(Inputs._fields[:-1], got, want) if b is not None}
  assert all(error < 1e-2 for error in errors.values()), errors


@pytest.mark.parametrize("changed, reason", [
    (dict(dtype="float32"), "not float32"), (dict(delta=True, V=96), "V=96"),
    (dict(precision="highest"), "highest"), (dict(chunk=32), "chunk=32"),
    (dict(chunk=128, forward="pallas_gpu", backward="xla"), "every 64 tokens, not every 128")])
def test_what_does_not_fill_its_tiles_is_refused_with_the_numbers(changed, reason):
  assert reason in mosaic_gpu.why_not(dataclasses.replace(PLAN, **changed))


def test_auto_says_why_it_does_not_choose_them():
  shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  arrays = shape(1, 150, 1, 128), shape(1, 150, 1, 128), shape(1, 150, 2, 128)
  choice = explain_backend(*arrays, platform="gpu")
  assert choice.name == "xla" and "never run on a GPU" in choice.refused["pallas_gpu"]
  assert not any("pallas_gpu" in names for names in backends.AUTO.values())
  if compat.pallas_triton is not None:
    assert explain_backend(*arrays, backend="pallas_gpu", platform="gpu").name == "pallas_gpu"
  with pytest.raises(ValueError, match=r"Mosaic GPU: it needs .*9\.0.*; Triton: .*chunk=256"):
    explain_backend(*arrays, chunk=256, backend="pallas_gpu", platform="gpu")


@pytest.mark.skipif(compat.pallas_triton is None, reason="this jax has no Triton lowering")
def test_a_hopper_gpu_takes_what_fills_its_tiles_and_triton_the_rest(monkeypatch):
  plans = [dataclasses.replace(PLAN, **changed) for changed in (
      {}, dict(delta=True), dict(decay="vector"), dict(dtype="float32"), dict(delta=True, V=96))]
  monkeypatch.setattr(hopper, "capability", lambda: "9.0")
  assert [gpu._kernels(plan) for plan in plans] == [mosaic_gpu, mosaic_gpu_states, mosaic_gpu_states, triton, triton]
  assert [gpu.why_not(plan, "gpu") for plan in plans] == [None] * 5
  monkeypatch.setattr(hopper, "capability", lambda: "8.0")
  assert gpu._kernels(PLAN) is triton
  assert gpu.why_not(PLAN, "cpu") == "it needs an NVIDIA GPU"


@pytest.mark.skipif(compat.pallas_triton is None, reason="this jax has no Triton lowering")
@pytest.mark.parametrize("delta", [False, True])
def test_both_gpu_kernels_keep_their_states_alike(delta):
  plan = dataclasses.replace(PLAN, T=128, reverse=True, delta=delta)
  shapes = [jax.eval_shape(functools.partial(kernels.forward, plan), _inputs(plan))
            for kernels in (gpu.hopper_kernels(plan), triton)]
  assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
