"""The elementwise scan for Hopper: lowered for cuda without a GPU, right in jax's GPU interpreter."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import compat, hopper
from pallas_kernels.diag_scan import api, diag_scan, explain_backend, gpu, mosaic_gpu
from tests.common.lowering import custom_calls, lower_for_hopper

INTERPRETER = compat.gpu_interpreter()


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("constant, reverse", [(True, False), (False, True)])
def test_the_scan_and_its_gradients_are_lowered_for_hopper(dtype, constant, reverse):
  array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
  gradients = lambda a, x, h0: jax.vjp(lambda *y: api.run("pallas_gpu", reverse, *y), a, x, h0)[1](x)
  text = lower_for_hopper(gradients, array(130) if constant else array(2, 70, 130), array(2, 70, 130), array(2, 130))
  assert custom_calls(text) == ["mosaic_gpu_v2"] * 2


def _loss(arrays, segment_ids, **options):
  a, x, h0 = arrays
  h, last = diag_scan(a, x, h0=h0, segment_ids=segment_ids, **options)
  return jnp.sum(jnp.sin(h.real) + jnp.cos(h.imag)) + jnp.sum(jnp.sin(2 * last.real)), h


loss_and_gradients = jax.jit(jax.value_and_grad(_loss, has_aux=True), static_argnames=("backend", "reverse"))


@pytest.mark.skipif(INTERPRETER is None, reason="this jax has no GPU interpreter")
@pytest.mark.parametrize("dtype, constant, reverse, packed, T, D", [
    ("float32", False, True, False, 70, 130), ("float32", True, False, False, 1, 5),
    ("complex64", False, False, True, 50, 3), ("complex64", True, True, False, 20, 128)])
def test_the_emulated_scan_is_the_reference_and_has_no_races(monkeypatch, dtype, constant, reverse, packed, T, D):
  emulated = types.SimpleNamespace(
      why_not=lambda shape, dtype, platform: None,
      scan=functools.partial(mosaic_gpu.scan, interpret=INTERPRETER(detect_races=True)))
  monkeypatch.setitem(api.BACKENDS, "pallas_gpu", emulated)
  draw = np.random.default_rng(0)
  a = draw.uniform(0.3, 1.0, D if constant else (2, T, D))
  x, h0 = draw.standard_normal((2, T, D)), draw.standard_normal((2, D))
  if dtype == "complex64":
    a, x = a * np.exp(1j * draw.uniform(0, 6, a.shape)), x * (1 - 2j)
  arrays = tuple(y.astype(dtype) for y in (a, x, h0))
  ids = np.broadcast_to(np.arange(T, dtype=np.int32) // 19 - 1, (2, T)) if packed else None
  (_, h), gradients = loss_and_gradients(arrays, ids, backend="pallas_gpu", reverse=reverse)
  (_, h_exact), exact = loss_and_gradients(arrays, ids, backend="reference", reverse=reverse)
  for name, got, want in zip(("h", "a", "x", "h0"), (h, *gradients), (h_exact, *exact)):
    assert np.linalg.norm(got - want) <= 5e-6 * np.linalg.norm(want), name


@pytest.mark.parametrize("capability, dtype, platform, reason", [
    ("9.0", "float32", "gpu", None), ("9.0", "bfloat16", "gpu", None), ("9.0", "complex64", "gpu", None),
    ("9.0", "complex128", "gpu", "complex128 would lose digits"),
    ("9.0", "float32", "cpu", "needs an NVIDIA GPU"), ("8.0", "float32", "gpu", "first local GPU has 8.0")])
def test_what_it_cannot_run_is_refused_with_the_reason(monkeypatch, capability, dtype, platform, reason):
  monkeypatch.setattr(hopper, "capability", lambda: capability)
  refused = gpu.why_not((2, 7, 3), jnp.dtype(dtype), platform)
  assert refused is None if reason is None else reason in refused


def test_auto_says_why_it_does_not_choose_it():
  x = jax.ShapeDtypeStruct((2, 7, 3), jnp.float32)
  choice = explain_backend(x, platform="gpu")
  assert choice.name == "xla" and "never run on a GPU" in choice.refused["pallas_gpu"]
  with pytest.raises(ValueError, match=r"'pallas_gpu' cannot run this call on gpu: .*9\.0"):
    explain_backend(x, platform="gpu", backend="pallas_gpu")
