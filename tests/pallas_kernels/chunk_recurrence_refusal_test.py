"""What chunk_recurrence refuses, before anything is compiled, and what its dispatch explains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.chunk_recurrence import chunk_recurrence, explain_backend


def _good(**changed):
  draw = np.random.default_rng(0)
  q, k = draw.standard_normal((2, 2, 10, 2, 8), np.float32)
  arrays = dict(q=q, k=k, v=draw.standard_normal((2, 10, 4, 6), np.float32),
                g=np.full((2, 10, 4), -0.1, np.float32), beta=np.full((2, 10, 4), 0.5, np.float32))
  return arrays | changed


SHAPES = {
    "q has 3 axes": dict(q=np.zeros((2, 10, 8), np.float32)),
    r"q \(2, 10, 2, 7\) and k": dict(q=np.zeros((2, 10, 2, 7), np.float32)),
    "3 value heads must be a multiple of 2": dict(v=np.zeros((2, 10, 3, 6), np.float32)),
    "must share batch and tokens": dict(v=np.zeros((2, 9, 4, 6), np.float32)),
    r"g has shape \(2, 10, 2\), must be": dict(g=np.zeros((2, 10, 2), np.float32)),
    r"beta has shape \(2, 10\), must be": dict(beta=np.zeros((2, 10), np.float32)),
    "initial_state has shape": dict(initial_state=np.zeros((2, 4, 6, 8), np.float32)),
    "segment_ids is float32": dict(segment_ids=np.zeros((2, 10), np.float32)),
    "segment_ids is int32": dict(segment_ids=np.zeros((10,), np.int32)),
    "T=0": dict(q=np.zeros((2, 0, 2, 8), np.float32), k=np.zeros((2, 0, 2, 8), np.float32),
                v=np.zeros((2, 0, 4, 6), np.float32), g=None, beta=None),
    "q is int32, must be floating": dict(q=np.zeros((2, 10, 2, 8), np.int32)),
    "must share one dtype": dict(v=jnp.zeros((2, 10, 4, 6), jnp.bfloat16)),
}
RANGES = {
    r"g lies in \[-0.1, 0.25\], must lie in \[-inf, 0\]": dict(g=np.float32([-0.1, 0.25, -0.1, -0.1])),
    r"beta lies in \[0.5, 2.5\], must lie in \[0, 2\]": dict(
        beta=np.r_[0.5 * np.ones(79), 2.5].reshape(2, 10, 4).astype(np.float32)),
    r"g lies in \[nan, nan\]": dict(g=np.full((4,), np.nan, np.float32)),
}
OPTIONS = {
    "chunk=48 must be a power of two; the nearest is 64": dict(chunk=48),
    "chunk=0 must be a power of two": dict(chunk=0),
    "precision='fast' must be one of": dict(precision="fast"),
    "save_states='maybe' must be one of": dict(save_states="maybe"),
    "backend='cuda' must be 'auto' or one of": dict(backend="cuda"),
    "backend='pallas_tpu' cannot run this call on cpu": dict(backend="pallas_tpu"),
    "backend='pallas_gpu' cannot run this call on cpu": dict(backend="pallas_gpu"),
    "reference is differentiated as a whole": dict(backend="xla", backward_backend="reference"),
    "with num_heads it must be": dict(num_heads=4),
}


def _call(changed):
  return chunk_recurrence(**_good(**changed))


@pytest.mark.parametrize("message", SHAPES | OPTIONS)
def test_misfits_are_refused_with_their_numbers_even_while_tracing(message):
  changed = (SHAPES | OPTIONS)[message]
  with pytest.raises(ValueError, match=message):
    _call(changed)
  arrays = {n: x for n, x in _good(**changed).items() if hasattr(x, "shape")}
  rest = {n: x for n, x in changed.items() if n not in arrays}
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda a: _call(rest | a), arrays)


@pytest.mark.parametrize("message", RANGES)
def test_values_out_of_range_are_refused_when_they_are_known(message):
  with pytest.raises(ValueError, match=message):
    _call(RANGES[message])


def test_every_message_names_a_way_out():
  for changed in (SHAPES | RANGES | OPTIONS).values():
    with pytest.raises(ValueError) as error:
      _call(changed)
    assert "must" in str(error.value) or "use" in str(error.value) or "name it" in str(error.value)


def test_the_choice_of_backend_is_explained():
  arrays = _good()
  shapes = [jax.ShapeDtypeStruct(arrays[n].shape, np.float32) for n in ("q", "k", "v", "g", "beta")]
  choice = explain_backend(*shapes, platform="cpu")
  assert choice.name == "xla" and "cpu" in choice.reason
  assert explain_backend(*shapes, backend="reference").reason == "named by the caller"
  with pytest.raises(ValueError, match="pallas_tpu"):
    explain_backend(*shapes, backend="pallas_tpu", platform="cpu")
