"""Auxiliary losses of routers against the same numbers by hand in float64."""

import math

import jax
import numpy as np
import pytest

from layers import routing
from layers.moe import losses

# Dims: B rows, T tokens, N = B T, E experts, K experts per token.

B, T, E, K = 2, 7, 5, 2
N = B * T


def _logits(seed):
  return np.random.default_rng(seed).standard_normal((N, E))


def _softmax(z):
  p = np.exp(z - z.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def _is(function, want, *args, rtol=2e-6, **fields):
  jitted = jax.jit(lambda *arrays: function(*arrays, **fields))
  np.testing.assert_allclose(jitted(*(np.asarray(a, np.float32) for a in args)), want, rtol=rtol, atol=1e-7)


def test_importance_is_the_squared_variation_of_what_experts_weigh():
  gates = _softmax(_logits(0))
  total = [sum(gates[n][e] for n in range(N)) for e in range(E)]
  mean = sum(total) / E
  _is(losses.importance, sum((g - mean)**2 for g in total) / E / mean**2, gates, rtol=2e-5)


def test_the_chance_is_that_of_winning_with_new_noise():
  """Checked against the definition: of all others the K-th largest is the rival."""
  clean = _logits(1)
  noisy = clean + 0.5 * np.random.default_rng(2).standard_normal((N, E))
  std = np.random.default_rng(3).uniform(0.2, 1.0, (N, E))
  want = np.zeros((N, E))
  for n in range(N):
    for e in range(E):
      rival = sorted(np.delete(noisy[n], e))[-K]
      want[n, e] = 0.5 * (1 + math.erf((clean[n, e] - rival) / std[n, e] / math.sqrt(2)))
  _is(losses.chance, want, clean, noisy, std, top_k=K, rtol=1e-4)


def test_balance_is_the_share_times_the_mean_probability():
  p = _softmax(_logits(4))
  assigned = (p >= np.sort(p, axis=1)[:, -K:-K + 1]).astype(np.float64)
  want = E * sum(assigned[:, e].sum() / N * p[:, e].sum() / N for e in range(E))
  _is(losses.balance, want, p, assigned)


def test_balance_is_1_per_choice_when_even_and_counts_no_gradient_of_the_choice():
  even, hot = np.full((E, E), 1 / E, np.float32), np.eye(E, dtype=np.float32)
  _is(losses.balance, 1.0, even, hot)
  _is(losses.balance, 2.0, even, hot + np.roll(hot, 1, axis=1))
  assert np.all(np.asarray(jax.jit(jax.grad(losses.balance, argnums=1))(even, hot)) == 0)


def test_the_balance_of_rows_is_a_mean_of_losses_and_not_a_loss_of_means():
  p = _softmax(2 * _logits(5))
  top = np.argsort(-p, axis=1)[:, :K]
  assigned = np.zeros((N, E))
  np.put_along_axis(assigned, top, 1.0, axis=1)
  rows = []
  for b in range(B):
    row = slice(b * T, (b + 1) * T)
    count = assigned[row].sum(0)
    rows.append(sum(E / (K * T) * count[e] * p[row, e].sum() / T for e in range(E)))
  _is(losses.row_balance, sum(rows) / B, p, assigned, tokens=T)
  whole = float(jax.jit(losses.balance)(p.astype(np.float32), (assigned / K).astype(np.float32)))
  assert abs(whole - sum(rows) / B) > 1e-2


def test_z_is_the_mean_squared_log_partition():
  z = 3 * _logits(6)
  _is(losses.z, sum(math.log(sum(math.exp(v) for v in row))**2 for row in z) / N, z)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_a_chunk_is_touched_unless_every_token_leaves_it_alone(chunk):
  p = _softmax(_logits(7)).reshape(B, T, E)
  free = [math.prod(1 - p[b, t, e] + 1e-5 for t in range(at, min(at + chunk, T)))
          for b in range(B) for at in range(0, T, chunk) for e in range(E)]
  _is(losses.chunk_touch, 1 - sum(free) / len(free), p.reshape(N, E), tokens=T, chunk=chunk)


def test_locality_is_the_cross_entropy_of_neighbours_within_a_row():
  a = 0.03 * _logits(8).reshape(B, T, E)
  sigmoid = lambda v: 1 / (1 + math.exp(-100 * v))
  terms = [-sigmoid(a[b, t, e]) * math.log(sigmoid(a[b, t - 1, e]))
           - (1 - sigmoid(a[b, t, e])) * math.log(1 - sigmoid(a[b, t - 1, e]))
           for b in range(B) for t in range(1, T) for e in range(E)]
  _is(losses.locality, sum(terms) / len(terms), a.reshape(N, E), tokens=T, rtol=2e-5)


def test_load_and_its_largest_violation_count_choices():
  gates = np.array([[.5, .5, 0, 0], [.9, 0, .1, 0], [1, 0, 0, 0]], np.float32)
  stats = jax.jit(routing.balance_stats)(gates)
  np.testing.assert_allclose([stats["load_max"], stats["load_min"], stats["max_violation"]], [0.6, 0.0, 1.4], rtol=1e-6)
  nothing = jax.jit(routing.balance_stats)(np.zeros((3, 4), np.float32))
  assert nothing["load_max"] == 0 and nothing["max_violation"] == -1


def test_entropy_is_that_of_each_token():
  p = _softmax(_logits(9))
  _is(routing.entropy, -np.sum(p * np.log(p)) / N, p)
