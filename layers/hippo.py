"""State spaces that remember by projecting the past on Legendre polynomials, and their steps in time.

    m'(t) = A m(t) + B u(t)

LegS weighs all of the past alike, LegT (the LMU) only the last theta:

    LegS   A_nk = -sqrt((2n+1)(2k+1)) for n > k, -(n+1) for n = k, 0 for n < k;  B_n = sqrt(2n+1)
    LegT   A_nk = (2n+1)/theta * (-1 for n < k, (-1)^(n-k+1) else);  B_n = (2n+1) (-1)^n / theta

A of LegS is normal but for one direction: A + P P^T = -1/2 I + skew with P_n = sqrt(n + 1/2), so in
a unitary basis V it is Lambda - P P*, Lambda = -1/2 + i w. Eigenvalues come in conjugate pairs; only
those with w > 0 are kept. Everything here is numpy in float64, for the time of initialisation.

Reference: Gu et al., "HiPPO: Recurrent Memory with Optimal Polynomial Projections", 2020; Voelker et
al., "Legendre Memory Units", 2019; Gu et al., "Efficiently Modeling Long Sequences with Structured
State Spaces", 2022, appendix C.
"""

import numpy as np

from layers import state_space

# Dims: N order of the state, M = N/2 kept modes.


def legs(order: int):
  """Returns (A_NN, B_N) of LegS."""
  n = np.arange(order, dtype=np.float64)
  root = np.sqrt(2 * n + 1)
  return -np.tril(np.outer(root, root), -1) - np.diag(n + 1), root


def legt(order: int, theta: float = 1.0):
  """Returns (A_NN, B_N) of the window of length theta."""
  n = np.arange(order)
  gap = n[:, None] - n[None]
  sign = np.where(gap < 0, -1.0, 1.0 - 2.0 * ((gap + 1) % 2))
  rate = (2.0 * n + 1) / theta
  return rate[:, None] * sign, rate * (1.0 - 2.0 * (n % 2))


def legs_modes(order: int):
  """Returns (Lambda_M, P_M, B_M, V_NM) of LegS; with W = [V, conj V], A = W (Lambda - P P*) W* over all pairs.

  Raises:
    ValueError: `order` is odd, so that a mode has no partner.
  """
  state_space.check_order(order)
  A_NN, B_N = legs(order)
  P_N = np.sqrt(np.arange(order) + 0.5)
  skew_NN = A_NN + np.outer(P_N, P_N) + 0.5 * np.eye(order)
  w_N, V_NN = np.linalg.eigh(-1j * skew_NN)
  V_NM = V_NN[:, order // 2:]
  back = V_NM.conj().T
  return -0.5 + 1j * w_N[order // 2:], back @ P_N, back @ B_N, V_NM


def linear_modes(order: int):
  """Returns Lambda_M = -1/2 + i pi n, n = 0 .. N/2 - 1 (S4D-Lin)."""
  return -0.5 + 1j * np.pi * np.arange(order // 2)


def expm(A):
  """Returns the exponential of a square matrix: a Taylor sum of A / 2^s, squared s times."""
  squarings = max(0, int(np.ceil(np.log2(max(np.linalg.norm(A, 1), 1e-300)))) + 1)
  A = A / 2.0**squarings
  total = term = np.eye(len(A))
  for k in range(1, 19):  # the norm is at most 1/2, the next term below 1e-22
    term = term @ A / k
    total = total + term
  for _ in range(squarings):
    total = total @ total
  return total


def zoh(A_NN, B_N, step: float):
  """Returns (A, B) over one step during which the input holds still."""
  N = len(B_N)
  whole = np.zeros((N + 1, N + 1))
  whole[:N, :N], whole[:N, N] = A_NN * step, B_N * step
  whole = expm(whole)
  return whole[:N, :N], whole[:N, N]


def bilinear(A_NN, B_N, step: float, alpha: float = 0.5):
  """Returns (A, B) of the step that takes alpha of its slope from its end.

  alpha = 0 is Euler's rule, 1 the backward one, 1/2 the trapezoid.
  """
  one = np.eye(len(B_N))
  both = np.concatenate([one + (1 - alpha) * step * A_NN, step * B_N[:, None]], axis=1)
  both = np.linalg.solve(one - alpha * step * A_NN, both)
  return both[:, :-1], both[:, -1]


def legt_reader(order: int, share):
  """Returns c_XN such that c m(t) is about u(t - share * theta), for shares in [0, 1].

  Rows are the shifted Legendre polynomials P_n(2 share - 1).
  """
  x_X = 2.0 * np.atleast_1d(np.asarray(share, np.float64)) - 1
  rows = [np.ones_like(x_X), x_X]
  for n in range(1, order - 1):
    rows.append(((2 * n + 1) * x_X * rows[n] - n * rows[n - 1]) / (n + 1))
  return np.stack(rows[:order], axis=-1)
