"""The transform against the sum it stands for."""

import jax
import numpy as np
import pytest

from layers.fft_conv import fft_conv

run = jax.jit(fft_conv)
grads = jax.jit(jax.grad(lambda u, k, dy: (fft_conv(u, k) * dy).sum(), argnums=(0, 1)))


def _matrix(k):
  """Returns [T,T,...]: row t, column s holds k[t-s]."""
  T = len(k)
  return np.stack([[k[t - s] if t >= s else 0 * k[0] for s in range(T)] for t in range(T)])


def _inputs(seed, T):
  draw = np.random.default_rng(seed)
  return draw.standard_normal((2, T, 3), np.float32), draw.standard_normal((T, 3), np.float32)


def _error(got, want):
  return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("T", [1, 7, 8])
def test_it_is_the_causal_sum_and_its_gradients_are_those_of_the_sum(T):
  (u, k), (dy, _) = _inputs(0, T), _inputs(1, T)
  matrix = _matrix(k.astype(np.float64))
  assert _error(run(u, k), np.einsum("tsf,bsf->btf", matrix, u)) < 1e-6
  du, dk = grads(u, k, dy)
  assert _error(du, np.einsum("tsf,btf->bsf", matrix, dy)) < 1e-6
  want = np.stack([np.einsum("btf,btf->f", dy[:, l:], u[:, :T - l]) for l in range(T)])
  assert _error(dk, want) < 1e-6


def test_one_signal_may_meet_many_filters():
  (u, k), T = _inputs(2, 5), 5
  many = np.random.default_rng(3).standard_normal((T, 1, 4), np.float32)
  want = np.einsum("tsn,bsf->btfn", _matrix(many[:, 0].astype(np.float64)), u)
  got = np.concatenate([run(u[:, :, f:f + 1, None], many) for f in range(3)], axis=2)
  assert _error(got, want) < 1e-6


@pytest.mark.parametrize("shape", [(6, 3), (7, 2), (7,)])
def test_a_kernel_of_another_length_or_width_is_refused(shape):
  with pytest.raises(ValueError, match=r"u has shape \(2, 7, 3\) and kernel \(" + str(shape[0])):
    fft_conv(_inputs(4, 7)[0], np.zeros(shape, np.float32))
