"""A sequence split over devices is the sequence on one device, at the price of one all-gather."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import sequence_parallel
from pallas_kernels.chunk_recurrence import chunk_recurrence
from pallas_kernels.diag_scan import diag_scan

T = 48


def _mesh(devices):
  return jax.make_mesh((devices,), ("seq",), devices=jax.devices()[:devices],
                       axis_types=(jax.sharding.AxisType.Auto,))


def _inputs(decay, delta, seed=0, B=2, H=2, K=4, V=3):
  draw = np.random.default_rng(seed)
  q, k = draw.standard_normal((2, B, T, H, K))
  k /= np.linalg.norm(k, axis=-1, keepdims=True)
  shape = {"none": None, "scalar": (B, T, H), "vector": (B, T, H, K)}[decay]
  arrays = dict(q=q, k=k, v=draw.standard_normal((B, T, H, V)))
  if shape:
    arrays["g"] = draw.uniform(-0.5, 0, shape)
  if delta:
    arrays["beta"] = draw.uniform(0, 2, (B, T, H))
  state = draw.standard_normal((B, H, K, V))
  return jax.tree.map(lambda x: x.astype(np.float32), (arrays, state))


def _loss(function, end, arrays, state):
  o, final = function(arrays, state)
  final = final[end] if end is not None else final
  return jnp.sum(jnp.sin(o.real) + o.imag**2) + jnp.sum(jnp.cos(2 * final.real)), (o, final)


def _value_and_gradients(function, end, inputs):
  loss = functools.partial(_loss, function, end)
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*inputs)


def _assert_same(got, want, bound):
  for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want)):
    error = np.linalg.norm(a - b)
    assert error <= bound * np.linalg.norm(b), (jax.tree_util.keystr(path), error)


def _gathers(function, inputs):
  text = jax.jit(function).lower(*inputs).compile().as_text()
  return len(re.findall(r" all-gather(?:-start)?\(", text)), re.findall(
      r" (all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", text)


CASES = [("scalar", False, 2, False), ("none", False, 4, True), ("vector", False, 4, False),
         ("none", True, 8, False), ("scalar", True, 4, False), ("vector", True, 4, True)]


@pytest.mark.parametrize("decay, delta, devices, reverse", CASES)
def test_split_over_devices_equals_one_device(decay, delta, devices, reverse):
  inputs = _inputs(decay, delta)
  one = lambda arrays, state: chunk_recurrence(**arrays, initial_state=state, reverse=reverse, chunk=8,
                                               return_final_state=True)
  split = sequence_parallel.over(_mesh(devices), "seq", lambda arrays, state: (
      sequence_parallel.chunk_recurrence(**arrays, axis_name="seq", initial_state=state, reverse=reverse,
                                         chunk=4)))
  want = _value_and_gradients(one, None, inputs)
  got = _value_and_gradients(split, 0 if reverse else -1, inputs)
  _assert_same(got, want, 3e-5)
  assert _gathers(split, inputs) == (1, [])


@pytest.mark.parametrize("devices, reverse, kind", [(2, False, "real"), (8, True, "complex"), (4, False, "constant")])
def test_diag_scan_split_over_devices_equals_one_device(devices, reverse, kind):
  draw = np.random.default_rng(1)
  a, x = draw.uniform(0.5, 1, (2, T, 5)), draw.standard_normal((2, T, 5))
  h0 = draw.standard_normal((2, 5))
  if kind == "complex":
    a, x, h0 = a * np.exp(1j * x), x + 1j * a, h0 + 0j
  inputs = jax.tree.map(lambda y: y.astype(np.complex64 if kind == "complex" else np.float32),
                        (dict(a=a, x=x), h0))
  factor = (lambda arrays: arrays["a"]) if kind != "constant" else (lambda _: jnp.linspace(0.5, 1, 5))
  one = lambda arrays, h0: diag_scan(factor(arrays), arrays["x"], h0=h0, reverse=reverse)
  split = sequence_parallel.over(_mesh(devices), "seq", lambda arrays, h0: sequence_parallel.diag_scan(
      factor(arrays), arrays["x"], axis_name="seq", h0=h0, reverse=reverse))
  want = _value_and_gradients(one, None, inputs)
  got = _value_and_gradients(split, 0 if reverse else -1, inputs)
  _assert_same(got, want, 1e-5)
  assert _gathers(split, inputs) == (1, [])


def test_tokens_that_do_not_divide_are_refused():
  split = sequence_parallel.over(_mesh(8), "seq", lambda arrays, state: (arrays["q"], state))
  with pytest.raises(ValueError, match="T=12 must be a multiple of the 8 devices"):
    split(dict(q=np.zeros((1, 12, 1, 1))), np.zeros((1,)))
