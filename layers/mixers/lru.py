"""LRU: a linear recurrence with complex numbers on its diagonal, begun on a ring in the unit disc.

    h_t = a * h_{t-1} + exp(g) * (B u_t)        a = exp(-exp(nu) + i exp(theta)), so |a| < 1
    y_t = Re(C h_t) + D * u_t
    out = W_up e * sigmoid(W_gate e)        e = gelu(y_t)

with * elementwise, P modes, B of P x D, C of D x P. At first |a|^2 is uniform between
r_low^2 and r_high^2, the phase uniform up to max_phase, and exp(g) = sqrt(1 - |a|^2), with
which white noise gives every mode the same variance.

Reference: Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences",
2023, appendix A. Departure: the projections after the gelu have no biases.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import complex_pair
from layers.dense import Dense
from pallas_kernels.diag_scan import diag_scan

# Dims: B batch, T tokens, D model, P modes, 2 real and imaginary part.

TINY = dict(modes=4, r_low=0.3, r_high=0.9)


def ring_init(r_low: float, r_high: float):
  """Returns the initializer of nu: exp(-exp(nu)) has an area as uniform as its ring allows."""
  def init(key, shape):
    square = jax.random.uniform(key, shape, jnp.float32, r_low**2, r_high**2)
    return jnp.log(-0.5 * jnp.log(square))
  return init


def phase_init(max_phase: float):
  """Returns the initializer of theta: exp(theta) is uniform in (0, max_phase)."""
  def init(key, shape):
    # Not from 0, which has no logarithm.
    return jnp.log(max_phase * jax.random.uniform(key, shape, jnp.float32, 1e-6, 1.0))
  return init


def log_gain(nu):
  """Returns log sqrt(1 - |a|^2)."""
  # expm1: on a ring near 1 the difference would have few digits.
  return 0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu)))


class LRU(nn.Module):
  """The mixer: recurrence, skip, gelu, gated projection.

  Attributes:
    modes: P, complex numbers in the state.
    r_low, r_high: radii of the ring, 0 <= r_low < r_high < 1.
    max_phase: largest phase at first, in radians; a small one suits long sequences.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the gated projection. The recurrence is in float32.
  """

  modes: int = 64
  r_low: float = 0.0
  r_high: float = 0.99
  max_phase: float = 6.283185
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty state h_BP2."""
    return dict(h_BP2=jnp.zeros((batch, self.modes, 2), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    if not 0 <= self.r_low < self.r_high < 1:
      raise ValueError(f"r_low={self.r_low} and r_high={self.r_high} must satisfy 0 <= r_low < r_high < 1; "
                       "at 1 nothing is ever forgotten.")
    if self.modes < 1 or self.max_phase <= 0:
      raise ValueError(f"modes={self.modes} must be at least 1 and max_phase={self.max_phase} above 0.")
    P, D = self.modes, x_BTD.shape[-1]
    nu_P = self.param("nu", ring_init(self.r_low, self.r_high), (P,))
    angle_P = jnp.exp(self.param("theta", phase_init(self.max_phase), (P,)))
    g_P = self.param("gain", lambda key: log_gain(nu_P))
    B_PD2 = self.param("B", nn.initializers.normal((2 * D) ** -0.5), (P, D, 2))
    C_DP2 = self.param("C", nn.initializers.normal(P**-0.5), (D, P, 2))
    skip_D = self.param("D", nn.initializers.normal(1.0), (D,))

    u_BTD = x_BTD.astype(jnp.float32)
    a_P = jnp.exp(jax.lax.complex(-jnp.exp(nu_P), angle_P))
    write_BTP = jnp.exp(g_P)[None, None] * complex_pair.of_real(B_PD2, u_BTD)
    h_BP = None if state is None else complex_pair.join(state["h_BP2"])
    h_BTP, h_BP = diag_scan(a_P, write_BTP, h0=h_BP, segment_ids=segment_ids, backend=self.backend)
    y_BTD = complex_pair.real_of_product(C_DP2, h_BTP) + skip_D[None, None] * u_BTD
    e_BTD = nn.gelu(y_BTD).astype(self.dtype)
    dense = lambda name: Dense(D, use_bias=False, dtype=self.dtype, name=name)
    return dense("up")(e_BTD) * nn.sigmoid(dense("gate")(e_BTD)), dict(h_BP2=complex_pair.split(h_BP))
