"""S5: one linear state space with P complex modes reads and writes all features of the stream.

    h_t = exp(L d) h_{t-1} + L^-1 (exp(L d) - 1) B u_t        L, d: one per mode, Re L < 0 < d
    y_t = 2 Re(C h_t) + D * u_t
    out = g * sigmoid(W_gate g)        g = gelu(y_t)

with * elementwise, B of P x D, C of D x P; the 2 stands for the conjugate of every mode.
That is dh/ds = L h + B u, held constant over a step d. The modes begin as those of
HiPPO-N, the normal part of HiPPO-LegS, in `blocks` copies:

    A[n,k] = -1/2 if n = k,  -sqrt((n + 1/2)(k + 1/2)) if n > k,  the same with + if n < k

Reference: Smith et al., "Simplified State Space Layers for Sequence Modeling", 2023.
Departures: Re L = -exp(log_rate) cannot become positive; the gate has no bias.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from layers import complex_pair
from layers.dense import Dense
from pallas_kernels.diag_scan import diag_scan

# Dims: B batch, T tokens, D model, P modes, 2 real and imaginary part.

TINY = dict(modes=4, blocks=2, step_low=0.05, step_high=0.5)


def hippo_normal(size: int):
  """Returns (eigenvalues, unitary matrix of eigenvectors) of HiPPO-N, by rising imaginary part, in float64."""
  root = np.sqrt(np.arange(size) + 0.5)
  skew = np.triu(np.outer(root, root), 1)
  # i times a skew matrix is Hermitian, and eigh keeps its eigenvectors orthogonal.
  angle, vectors = np.linalg.eigh(-1j * (skew - skew.T))
  return -0.5 + 1j * angle, vectors


@functools.cache
def _modes(modes: int, blocks: int):
  """Returns (L_P, V): the eigenvalues above the real axis, and their vectors in the space of 2 P real states."""
  size = modes // blocks
  values, vectors = hippo_normal(2 * size)
  V = np.kron(np.eye(blocks), vectors[:, size:])
  return np.tile(values[size:], blocks), V


def discretize(L_P, d_P):
  """Returns (factor of the state, factor of the input) of one step with the input held."""
  # expm1: of a slow mode exp(L d) - 1 would lose half the digits.
  return jnp.exp(L_P * d_P), jnp.expm1(L_P * d_P) / L_P


class S5(nn.Module):
  """The mixer: state space, skip, gelu, gate.

  Attributes:
    modes: P, each with its conjugate, so that the real state has 2 P numbers.
    blocks: copies of HiPPO-N that the modes begin as, a divisor of modes.
    step_low, step_high: range of the log-uniform steps d at first.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the gate. The state space is in float32.
  """

  modes: int = 64
  blocks: int = 1
  step_low: float = 1e-3
  step_high: float = 0.1
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty state h_BP2."""
    return dict(h_BP2=jnp.zeros((batch, self.modes, 2), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    P, D = self.modes, x_BTD.shape[-1]
    if self.blocks < 1 or P < 1 or P % self.blocks:
      raise ValueError(f"blocks={self.blocks} must be at least 1 and divide modes={P}.")
    if not 0 < self.step_low <= self.step_high:
      raise ValueError(f"step_low={self.step_low} must be above 0 and at most step_high={self.step_high}.")
    L0_P, V = _modes(P, self.blocks)

    def mapped(matrix):
      """Initializer: a real matrix with variance 1 / inputs, seen in the space of the modes."""
      def init(key, shape):
        real = nn.initializers.lecun_normal(in_axis=1, out_axis=0)(key, shape)
        return complex_pair.split(matrix(real)).astype(jnp.float32)
      return init

    def steps(key, shape):
      return jax.random.uniform(key, shape, jnp.float32, jnp.log(self.step_low), jnp.log(self.step_high))

    rate_P = jnp.exp(self.param("log_rate", lambda key: jnp.log(-jnp.asarray(L0_P.real, jnp.float32))))
    angle_P = self.param("angle", lambda key: jnp.asarray(L0_P.imag, jnp.float32))
    d_P = jnp.exp(self.param("log_step", steps, (P,)))
    B_PD2 = self.param("B", mapped(lambda real: V.conj().T @ real), (2 * P, D))
    C_DP2 = self.param("C", mapped(lambda real: real @ V), (D, 2 * P))
    skip_D = self.param("D", nn.initializers.normal(1.0), (D,))

    u_BTD = x_BTD.astype(jnp.float32)
    a_P, b_P = discretize(jax.lax.complex(-rate_P, angle_P), d_P)
    write_BTP = b_P[None, None] * complex_pair.of_real(B_PD2, u_BTD)
    h_BP = None if state is None else complex_pair.join(state["h_BP2"])
    h_BTP, h_BP = diag_scan(a_P, write_BTP, h0=h_BP, segment_ids=segment_ids, backend=self.backend)
    y_BTD = 2 * complex_pair.real_of_product(C_DP2, h_BTP) + skip_D[None, None] * u_BTD
    g_BTD = nn.gelu(y_BTD).astype(self.dtype)
    g_BTD *= nn.sigmoid(Dense(D, use_bias=False, dtype=self.dtype, name="gate")(g_BTD))
    return g_BTD, dict(h_BP2=complex_pair.split(h_BP))
