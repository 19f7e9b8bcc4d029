"""A softmax-gated mixture of Gaussian linear experts in one dimension, fitted by maximum likelihood in float64.

    p(y | x) = sum_e g_e(x) N(y; a_e x + c_e, v_e)        g = softmax((f(w x) + b) / tau)

f is the identity (the gate with a temperature) or bends (the activation gate). The last expert has w = b = 0, since a
softmax knows differences only. With f the identity w, b and tau enter as w / tau and b / tau: (s w, s b, s tau) is the
same density for every s > 0, and no data tell them apart. A bent f tells them apart.

A mixture fitted with more experts than the truth is compared cell by cell: each fitted expert belongs to the true one j
whose (a, c, v) is nearest, and has the share q_e of exp(b_e / tau) within its cell,

    error = |log tau - log tau*| + sum_j |log sum_{e in j} exp(b_e / tau) - b*_j / tau*|
            + sum_j sum_{e in j} q_e (|w_e - w*_j| + |a_e - a*_j| + |c_e - c*_j| + |log v_e - log v*_j|)

so that an expert cut into several equal ones has no error. A cell that is left empty counts as 1.

Reference: Nguyen, Akbarian, Ho, "Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?", 2024. Its
losses between mixtures weigh crowded cells by powers of the distances; here all distances count as they are.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, special

# Dims: N samples, E experts, P numbers of a packed mixture.

_INVERSE_ROOT = (2 * np.pi)**-0.5
# name -> f and its derivative.
GATES = {
    "identity": (lambda z: z, np.ones_like),
    "sigmoid": (special.expit, lambda z: special.expit(z) * special.expit(-z)),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z)**2),
    "gelu": (lambda z: z * special.ndtr(z), lambda z: special.ndtr(z) + z * _INVERSE_ROOT * np.exp(-z * z / 2)),
}


class Mixture(NamedTuple):
  """The parameters; see the file's first lines."""

  w_E: np.ndarray
  b_E: np.ndarray
  tau: float
  a_E: np.ndarray
  c_E: np.ndarray
  v_E: np.ndarray


TRUTH = Mixture(np.array([1.5, 0.0]), np.array([0.1, 0.0]), 0.3,
                np.array([1.0, -1.0]), np.array([1.0, -1.0]), np.array([0.1, 0.1]))


def pack(mixture: Mixture) -> np.ndarray:
  """Returns the free numbers: w and b without the last, log tau, a, c, log v."""
  w, b, tau, a, c, v = mixture
  return np.concatenate([w[:-1], b[:-1], [np.log(tau)], a, c, np.log(v)])


def unpack(numbers_P) -> Mixture:
  """Returns the mixture of E = (P + 1) / 5 experts."""
  E = (len(numbers_P) + 1) // 5
  w, b, log_tau, a, c, log_v = np.split(numbers_P, np.cumsum([E - 1, E - 1, 1, E, E]))
  return Mixture(np.append(w, 0.0), np.append(b, 0.0), float(np.exp(log_tau[0])), a, c, np.exp(log_v))


def _logits(mixture, x_N, gate):
  return (GATES[gate][0](mixture.w_E[:, None] * x_N[None]) + mixture.b_E[:, None]) / mixture.tau


def draw(mixture: Mixture, count: int, gate: str, random: np.random.Generator):
  """Returns (x_N uniform in -2 .. 2, y_N)."""
  x_N = random.uniform(-2.0, 2.0, count)
  # The largest of logits with Gumbel noise is a draw from their softmax.
  e_N = np.argmax(_logits(mixture, x_N, gate) + random.gumbel(size=(len(mixture.a_E), count)), axis=0)
  mean_N = mixture.a_E[e_N] * x_N + mixture.c_E[e_N]
  return x_N, mean_N + np.sqrt(mixture.v_E[e_N]) * random.standard_normal(count)


def _normalised(z_EN):
  """Returns (softmax over experts, log of its sum)."""
  top_N = z_EN.max(axis=0)
  p_EN = np.exp(z_EN - top_N[None])
  sum_N = p_EN.sum(axis=0)
  return p_EN / sum_N[None], top_N + np.log(sum_N)


def objective(numbers_P, x_N, y_N, gate: str):
  """Returns the mean of -log p(y | x) and its gradient."""
  mixture, N = unpack(numbers_P), len(x_N)
  logits_EN = _logits(mixture, x_N, gate)
  gate_EN, log_sum_N = _normalised(logits_EN)
  miss_EN = y_N[None] - mixture.a_E[:, None] * x_N[None] - mixture.c_E[:, None]
  force_EN = miss_EN / mixture.v_E[:, None]
  square_EN = miss_EN * force_EN
  taken_EN, log_p_N = _normalised(logits_EN - 0.5 * square_EN - 0.5 * np.log(2 * np.pi * mixture.v_E)[:, None])
  pull_EN = taken_EN - gate_EN
  bend_EN = GATES[gate][1](mixture.w_E[:, None] * x_N[None])
  force_EN *= taken_EN
  parts = ((pull_EN * bend_EN @ x_N)[:-1] / mixture.tau, pull_EN.sum(axis=1)[:-1] / mixture.tau,
           [-np.vdot(pull_EN, logits_EN)], force_EN @ x_N, force_EN.sum(axis=1),
           0.5 * (np.einsum("en,en->e", taken_EN, square_EN) - taken_EN.sum(axis=1)))
  return float(np.mean(log_sum_N - log_p_N)), -np.concatenate(parts) / N


def split(mixture: Mixture) -> Mixture:
  """Returns the same density with the first expert cut into two equal ones."""
  twice = lambda z_E: np.append(z_E[:1], z_E)
  b_E = twice(mixture.b_E)
  b_E[:2] -= mixture.tau * np.log(2.0)
  return Mixture(twice(mixture.w_E), b_E, mixture.tau, twice(mixture.a_E), twice(mixture.c_E), twice(mixture.v_E))


def bounds(experts: int) -> list[tuple[float, float]]:
  """Returns the compact set that the theory asks for: without it an expert of a few samples has v = 0 and p = inf."""
  E = experts
  return [(-20, 20)] * (2 * E - 2) + [(-4, 4)] + [(-20, 20)] * (2 * E) + [(np.log(0.02), 4)] * E


def fit(start: Mixture, x_N, y_N, gate: str) -> Mixture:
  """Returns the likeliest mixture that a quasi-Newton descent within `bounds` finds from `start`."""
  found = optimize.minimize(objective, pack(start), (x_N, y_N, gate), jac=True, method="L-BFGS-B",
                            bounds=bounds(len(start.a_E)), options=dict(maxiter=1000, maxcor=30, ftol=1e-12, gtol=1e-7))
  return unpack(found.x)


def error(mixture: Mixture, truth: Mixture) -> float:
  """Returns how far a fitted mixture is from the truth; see the file's first lines."""
  experts = lambda m: np.stack([m.a_E, m.c_E, np.log(m.v_E)], axis=1)
  cell_E = np.argmin(np.sum((experts(mixture)[:, None] - experts(truth)[None])**2, axis=-1), axis=1)
  away_E = np.abs(mixture.w_E - truth.w_E[cell_E]) + np.abs(experts(mixture) - experts(truth)[cell_E]).sum(axis=1)
  total = abs(np.log(mixture.tau / truth.tau))
  for j in range(len(truth.a_E)):
    score = mixture.b_E[cell_E == j] / mixture.tau
    if not len(score):
      total += 1.0
      continue
    total += abs(special.logsumexp(score) - truth.b_E[j] / truth.tau) + special.softmax(score) @ away_E[cell_E == j]
  return float(total)


def scaled(mixture: Mixture) -> Mixture:
  """Returns (w, b, tau) divided by tau: what a plain gate can know, the same density there."""
  return mixture._replace(w_E=mixture.w_E / mixture.tau, b_E=mixture.b_E / mixture.tau, tau=1.0)


def errors(gate: str, samples, repeats: int, random: np.random.Generator):
  """Returns [2, samples, repeats]: `error` of fits of one expert too many, as they are and after `scaled`.

  Every fit starts from the truth with one expert cut in two, all numbers moved by 0.2 standard normal.
  """
  found = np.zeros((2, len(samples), repeats))
  for i, count in enumerate(samples):
    for r in range(repeats):
      x_N, y_N = draw(TRUTH, count, gate, random)
      start = pack(split(TRUTH))
      fitted = fit(unpack(start + 0.2 * random.standard_normal(len(start))), x_N, y_N, gate)
      found[:, i, r] = error(fitted, TRUTH), error(scaled(fitted), scaled(TRUTH))
  return found


def slope(samples, errors_SR) -> float:
  """Returns the slope of the mean log error against log samples."""
  return float(np.polyfit(np.log(samples), np.mean(np.log(errors_SR), axis=1), 1)[0])
