"""Retention: linear attention whose heads forget at fixed rates and know how far back a key lies.

Per head h = 0..H-1, with k_t and q_t rotated by their position, the state is K x V:

    S_t = g_h S_{t-1} + k_t v_t^T        g_h = 1 - 2^(-5 - h)
    y_t = RMS(S_t^T q_t / sqrt(K)) * silu(W_gate x_t)

Plane i = 0..K/2-1 turns by theta^(-i / (K/2 - 1)) per token, so the slowest turns by 1 / theta.

Reference: Sun et al., "Retentive Network", 2023. Departures: the sums are divided by no
norm of the decays or scores, which RMS would cancel up to its eps; channel i is paired
with i + K/2 instead of its neighbour, a permutation of W_q and W_k; projections start as
Flax starts them.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from layers import rope, segments
from layers.dense import Dense
from layers.norms.rms_norm import rms_norm
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, H heads, K key width, V value width, D model, F features.


def log_decays(heads: int):
  """Returns log g_H in nats."""
  return np.log1p(-(2.0 ** (-5.0 - np.arange(heads)))).astype(np.float32)


def rotate(x_BTHK, position_BT, theta):
  """Turns channel pairs; the wavelengths run from 2 pi to 2 pi theta, both ends included.

  Raises:
    ValueError: K is odd.
  """
  planes = x_BTHK.shape[-1] // 2
  # The rotary row theta^(-i / planes) leaves its last end out; a larger base puts it in.
  return rope.rotate(x_BTHK, position_BT, theta ** (planes / max(planes - 1, 1)))


class Retention(nn.Module):
  """The mixer: project, rotate, decay, mix, normalise, gate, project back.

  Attributes:
    heads: number of heads H.
    key_dim: K, per head, even.
    value_dim: V, per head.
    rope_theta: the longest wavelength over the shortest; 0 leaves positions out.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Decays and state stay in float32.
  """

  heads: int = 4
  key_dim: int = 32
  value_dim: int = 64
  rope_theta: float = 10_000.0
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memory S_BHKV and seen_B, the tokens of the segment so far."""
    shape = (batch, self.heads, self.key_dim, self.value_dim)
    return dict(S_BHKV=jnp.zeros(shape, jnp.float32), seen_B=jnp.zeros(batch, jnp.int32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    B, T, D = x_BTD.shape
    state = self.init_state(B) if state is None else state

    def project(width, name):
      return Dense((self.heads, width), use_bias=False, dtype=self.dtype, name=name)(x_BTD)

    q_BTHK, k_BTHK = project(self.key_dim, "query"), project(self.key_dim, "key")
    v_BTHV = project(self.value_dim, "value")
    ids_BT = jnp.zeros((B, T), jnp.int32) if segment_ids is None else segment_ids
    position_BT, seen_B = segments.positions(ids_BT, state["seen_B"])
    if self.rope_theta:
      q_BTHK = rotate(q_BTHK, position_BT, self.rope_theta)
      k_BTHK = rotate(k_BTHK, position_BT, self.rope_theta)

    y_BTHV, S_BHKV = chunk_recurrence(
        q_BTHK, k_BTHK, v_BTHV, log_decays(self.heads), initial_state=state["S_BHKV"],
        segment_ids=segment_ids, return_final_state=True, chunk=self.chunk or None,
        backend=self.backend)
    y_BTF = rearrange(rms_norm(y_BTHV), "b t h v -> b t (h v)")
    y_BTF *= nn.silu(Dense(y_BTF.shape[-1], use_bias=False, dtype=self.dtype, name="gate")(x_BTD))
    y_BTD = Dense(D, use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    return y_BTD, dict(S_BHKV=S_BHKV, seen_B=seen_B)
