"""The Triton-lowered kernels: right in interpret mode, and lowered for cuda without a GPU."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import compat
from pallas_kernels.chunk_recurrence import backends, chunk_recurrence, triton
from pallas_kernels.chunk_recurrence.plan import Inputs, Plan
from tests.common.lowering import custom_calls, lower_for_hopper

pytestmark = pytest.mark.skipif(compat.pallas_triton is None, reason="this jax has no Triton lowering")

EMULATED = types.SimpleNamespace(why_not=lambda plan, platform: None,
                                 forward=functools.partial(triton.forward, interpret=True),
                                 backward=functools.partial(triton.backward, interpret=True))
NAMES = ("q", "k", "v", "g", "beta", "initial_state")


@pytest.fixture(autouse=True)
def _emulate(monkeypatch):
  monkeypatch.setitem(backends.BACKENDS, "pallas_gpu", EMULATED)


def _loss(arrays, ids, **options):
  *most, state = arrays
  o, final = chunk_recurrence(*most, initial_state=state, segment_ids=ids, return_final_state=True, **options)
  return jnp.sum(jnp.sin(o.astype(final.dtype))) + jnp.sum(jnp.cos(2 * final)), (o, final)


STATIC = ("backend", "chunk", "reverse", "save_states")
loss_and_gradients = jax.jit(jax.value_and_grad(_loss, has_aux=True), static_argnames=STATIC)


def _inputs(decay, delta, seed=0, B=2, T=37, G=1, H=2, K=16, V=12, g=(-1.0, 0.0), beta=(0.0, 2.0)):
  draw = np.random.default_rng(seed)
  q, k = draw.standard_normal((2, B, T, G, K))
  k /= np.linalg.norm(k, axis=-1, keepdims=True)
  shape = {"none": None, "scalar": (B, T, H), "vector": (B, T, H, K)}[decay]
  arrays = (q, k, draw.standard_normal((B, T, H, V)), None if shape is None else draw.uniform(*g, shape),
            draw.uniform(*beta, (B, T, H)) if delta else None, draw.standard_normal((B, H, K, V)))
  return jax.tree.map(lambda x: x.astype(np.float32), arrays)


def _rel(got, want):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1.0)


def _assert_same(arrays, exact, bound, gradient_bound, ids=None, chunk=16, reverse=False, **options):
  (_, got), gradients = loss_and_gradients(arrays, ids, backend="pallas_gpu", chunk=chunk, reverse=reverse,
                                           **options)
  (_, want), wanted = loss_and_gradients(exact, ids, backend="reference", reverse=reverse)
  for name, a, b in zip(("o", "final state"), got, want):
    assert _rel(a, b) < bound, (name, _rel(a, b))
  for name, a, b in zip(NAMES, gradients, wanted):
    if b is not None:
      assert _rel(a, b) < gradient_bound, (name, _rel(a, b))


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("decay, delta, packed, reverse", [
    slow("none", False, False, True), ("scalar", False, True, False), ("none", True, True, True),
    slow("scalar", True, False, False), slow("vector", False, True, True), ("vector", True, False, False)])
def test_the_kernels_are_the_reference_in_value_and_every_gradient(decay, delta, packed, reverse):
  arrays = _inputs(decay, delta)
  ids = np.broadcast_to(np.repeat([0, 1, 4], [10, 15, 12])[None], (2, 37)).astype(np.int32)
  _assert_same(arrays, arrays, 5e-6, 2e-5, ids if packed else None, reverse=reverse)


def test_any_size_works_by_masks_padding_and_tiles():
  arrays = _inputs("scalar", True, 1, T=5, G=2, H=4, K=5, V=70)
  ids = np.broadcast_to(np.int32([0, 0, 0, 1, 1])[None], (2, 5))
  _assert_same(arrays, arrays, 5e-6, 2e-5, ids, chunk=2, reverse=True, save_states="recompute")


def test_strong_gates_and_identical_keys_stay_finite_and_right():
  q, k, v, _, _, state = _inputs("none", False, 2, B=1, T=64)
  k = np.broadcast_to(k[:, :1], k.shape).copy()
  g = np.zeros((1, 64, 2, 16), np.float32)
  g[:, 40, 0], g[:, 41:, 0, 3] = -100.0, -30.0
  arrays = (q, k, v, g, np.full((1, 64, 2), 1.9, np.float32), state)
  _assert_same(arrays, arrays, 2e-5, 3e-4, chunk=64)


@pytest.mark.parametrize("decay", [slow("scalar"), "vector"])
def test_bfloat16_stays_within_its_bounds(decay):
  exact = _inputs(decay, True, 3)
  half = (*(jnp.asarray(x, jnp.bfloat16) for x in exact[:3]), *exact[3:])
  exact = (*(x.astype(np.float32) for x in half[:3]), *exact[3:])
  _assert_same(half, exact, 1e-2, 2e-2)


@pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning")
@pytest.mark.parametrize("decay, delta, packed, K, T", [
    ("none", False, True, 64, 256), ("scalar", False, False, 128, 1000), ("scalar", True, True, 48, 256),
    ("vector", False, False, 128, 256), ("vector", True, True, 64, 100)])
def test_every_kernel_is_lowered_for_cuda(decay, delta, packed, K, T):
  plan = _plan(decay, delta, packed, K, T)
  array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
  wide = functools.partial(array, jnp.float32)
  q, v = array(jnp.bfloat16, 2, T, 2, K), array(jnp.bfloat16, 2, T, 4, K)
  gate = {"none": None, "scalar": wide(2, T, 4), "vector": wide(2, T, 4, K)}[decay]
  inputs = Inputs(q, q, v, gate, wide(2, T, 4) if delta else None, wide(2, 4, K, K),
                  array(jnp.int32, 2, T) if packed else None)
  states = array(jnp.bfloat16, plan.chunks, 2, 4, K, K)
  forward = lower_for_hopper(functools.partial(triton.forward, plan), inputs)
  backward = lower_for_hopper(functools.partial(triton.backward, plan), inputs, states, v, inputs.state)
  assert custom_calls(forward) == custom_calls(backward) == ["__gpu$xla.gpu.triton"]


def _plan(decay="scalar", delta=False, packed=False, K=64, T=256, **changed):
  known = dict(decay=decay, delta=delta, packed=packed, B=2, T=T, H=4, G=2, K=K, V=K, dtype="bfloat16",
               scale=0.1, chunk=64, reverse=False, precision="mixed", save_states="save", forward="",
               backward="")
  return Plan(**known | changed)


@pytest.mark.parametrize("changed, reason", [
    (dict(dtype="float64"), "not float64"), (dict(chunk=256), "chunk=256"), (dict(K=512), "K=512")])
def test_what_a_program_cannot_hold_is_refused_with_the_numbers(changed, reason):
  assert triton.why_not(_plan(), "gpu") is None
  assert reason in triton.why_not(_plan(**changed), "gpu")
