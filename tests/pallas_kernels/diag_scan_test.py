"""The laws of the elementwise scan, real and complex, for every form of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.diag_scan import diag_scan, explain_backend
from pallas_kernels.diag_scan import xla

BACKENDS = ["xla", "interpret"]
KINDS = ["real", "complex", "constant", "constant_complex"]
kinds = pytest.mark.parametrize("kind", KINDS)
backends = pytest.mark.parametrize("backend", BACKENDS)


def _loss(arrays, segment_ids=None, **options):
  a, x, h0 = arrays
  h, last = diag_scan(a, x, h0=h0, segment_ids=segment_ids, **options)
  loss = jnp.sum(jnp.sin(h.real) + jnp.cos(h.imag)) + jnp.sum(jnp.sin(2 * last.real) + last.imag**2)
  return loss, (h, last)


loss_and_gradients = jax.jit(jax.value_and_grad(_loss, has_aux=True), static_argnames=("backend", "reverse"))
scan = jax.jit(diag_scan, static_argnames=("backend", "reverse"))


def _inputs(kind, seed=0, B=2, T=29, D=5):
  draw = np.random.default_rng(seed)
  a = draw.uniform(0.3, 1.0, (D,) if "constant" in kind else (B, T, D))
  x, h0 = draw.standard_normal((B, T, D)), draw.standard_normal((B, D))
  if "complex" not in kind:
    return tuple(y.astype(np.float32) for y in (a, x, h0))
  a = a * np.exp(1j * draw.uniform(0, 2 * np.pi, a.shape))
  return tuple(y.astype(np.complex64) for y in (a, x + 1j * draw.standard_normal(x.shape), h0 * 1j))


def _assert_same(got, want, bound=5e-6):
  got, want = jax.tree.leaves((got[0][1], got[1])), jax.tree.leaves((want[0][1], want[1]))
  for name, a, b in zip(("h", "last", "da", "dx", "dh0"), got, want):
    assert np.linalg.norm(a - b) <= bound * np.linalg.norm(b), name


@backends
@kinds
@pytest.mark.parametrize("reverse", [False, True])
def test_one_scan_backward_is_the_reference(backend, kind, reverse):
  arrays = _inputs(kind)
  _assert_same(loss_and_gradients(arrays, backend=backend, reverse=reverse),
               loss_and_gradients(arrays, backend="reference", reverse=reverse))


@pytest.mark.parametrize("kind, reverse, T, D", [
    ("real", True, 1, 1), ("complex", False, 1, 7), ("constant", True, 1030, 3), ("complex", True, 521, 300),
    ("real", False, 530, 600)])
def test_blocks_of_tokens_and_channels_are_joined_whatever_their_number(kind, reverse, T, D):
  arrays = _inputs(kind, seed=6, B=1, T=T, D=D)
  _assert_same(loss_and_gradients(arrays, backend="interpret", reverse=reverse),
               loss_and_gradients(arrays, backend="reference", reverse=reverse))


@backends
@pytest.mark.parametrize("kind, reverse", [("real", False), ("complex", True), ("constant", True)])
def test_a_nan_is_not_felt_before_its_own_token(backend, kind, reverse):
  a, x, h0 = _inputs(kind, seed=7)
  clean = scan(a, x, h0=h0, backend=backend, reverse=reverse)[0]
  x[:, 13] = np.nan
  h = scan(a, x, h0=h0, backend=backend, reverse=reverse)[0]
  before, after = (slice(14, None), slice(0, 14)) if reverse else (slice(0, 13), slice(13, None))
  np.testing.assert_array_equal(h[:, before], clean[:, before])
  assert np.isnan(h[:, after]).all()


@kinds
@pytest.mark.parametrize("reverse", [False, True])
def test_the_associative_form_is_the_loop(kind, reverse):
  arrays = _inputs(kind, seed=1)
  got = jax.jit(xla.associative, static_argnums=3)(*arrays, reverse)
  want = scan(*arrays[:2], h0=arrays[2], reverse=reverse)[0]
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@backends
@pytest.mark.parametrize("kind", ["complex", "constant"])
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_segments_are_separate_calls_and_padding_is_skipped(backend, kind, reverse):
  a, x, h0 = arrays = _inputs(kind, seed=2)
  ids = np.repeat([-1, 4, -2, 4, 1, -1, 4], [2, 6, 1, 5, 8, 3, 4])
  spans = [np.flatnonzero((ids == 4) & (np.arange(29) < 14)), np.flatnonzero(ids == 1), np.arange(25, 29)]
  if reverse:
    spans = spans[::-1]

  def separate(arrays):
    a, x, state = arrays
    h = jnp.zeros_like(x)
    for span in spans:
      part = a if a.ndim == 1 else a[:, span]
      piece, last = diag_scan(part, x[:, span], h0=state, reverse=reverse, backend="reference")
      h, state = h.at[:, span].set(piece), jnp.zeros_like(state)
    return _loss_of(h, last), (h, last)

  def _loss_of(h, last):
    return jnp.sum(jnp.sin(h.real) + jnp.cos(h.imag)) + jnp.sum(jnp.sin(2 * last.real) + last.imag**2)

  want = jax.jit(jax.value_and_grad(separate, has_aux=True))(arrays)
  packed = np.broadcast_to(ids[None], (2, 29)).astype(np.int32)
  _assert_same(loss_and_gradients(arrays, packed, backend=backend, reverse=reverse), want)


@backends
@kinds
def test_a_sequence_cut_in_two_is_the_whole_sequence(backend, kind):
  a, x, h0 = arrays = _inputs(kind, seed=3)
  part = lambda lo, hi: a if a.ndim == 1 else a[:, lo:hi]
  first, middle = scan(part(0, 11), x[:, :11], h0=h0, backend=backend)
  second, last = scan(part(11, 29), x[:, 11:], h0=middle, backend=backend)
  _, (h, whole_last) = loss_and_gradients(arrays, backend="reference")[0]
  np.testing.assert_allclose(np.concatenate([first, second], 1), h, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(last, whole_last, rtol=1e-5, atol=1e-5)


def test_float64_gradients_are_exact():
  with jax.enable_x64(True):
    arrays = tuple(y.astype(np.complex128) for y in _inputs("complex", seed=4))
    _assert_same(loss_and_gradients(arrays, backend="xla"),
                 loss_and_gradients(arrays, backend="reference"), 1e-12)


def test_any_channel_axes_and_bfloat16_keep_shape_and_dtype():
  draw = np.random.default_rng(5)
  x = jnp.asarray(draw.standard_normal((2, 7, 3, 4)), jnp.bfloat16)
  a = jnp.full((3, 4), 0.5, jnp.bfloat16)
  h, last = jax.jit(diag_scan)(a, x)
  assert h.shape == x.shape and h.dtype == jnp.bfloat16 and last.dtype == jnp.float32
  want = sum(0.5**i * np.asarray(x[:, 6 - i], np.float32) for i in range(7))
  np.testing.assert_allclose(last, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("message, arguments", [
    (r"a has shape \(2, 6, 3\), must be", dict(a=np.ones((2, 6, 3), np.float32))),
    (r"x has shape \(2, 7\)", dict(x=np.ones((2, 7), np.float32))),
    (r"no empty axis", dict(x=np.ones((2, 0, 3), np.float32))),
    ("x is int32", dict(x=np.ones((2, 7, 3), np.int32))),
    (r"h0 has shape \(3,\)", dict(h0=np.ones((3,), np.float32))),
    ("one of them must be complex", dict(h0=np.ones((2, 3), np.complex64))),
    ("must be an integer array", dict(segment_ids=np.ones((2, 7), np.float32))),
    ("backend='fast' must be", dict(backend="fast")),
    ("backend='pallas_tpu' cannot run this call on cpu: it needs a TPU", dict(backend="pallas_tpu")),
])
def test_misfits_are_refused_with_their_numbers(message, arguments):
  good = dict(a=np.ones((2, 7, 3), np.float32), x=np.ones((2, 7, 3), np.float32))
  with pytest.raises(ValueError, match=message):
    diag_scan(**(good | arguments))


def test_no_kernel_rounds_float64_unasked():
  with jax.enable_x64(True):
    a, x, _ = (y.astype(np.float64) for y in _inputs("real"))
    with pytest.raises(ValueError, match="'interpret' cannot run.*complex64, float64 would lose digits"):
      diag_scan(a, x, backend="interpret")
    choice = explain_backend(x, platform="tpu")
  assert choice.name == "xla" and "float64" in choice.refused["pallas_tpu"]


@pytest.mark.parametrize("platform, name", [("cpu", "xla"), ("tpu", "pallas_tpu"), ("gpu", "xla")])
def test_the_choice_of_backend_is_explained(platform, name):
  choice = explain_backend(jax.ShapeDtypeStruct((2, 7, 3), jnp.bfloat16), platform=platform)
  assert choice.name == name and platform in choice.reason
