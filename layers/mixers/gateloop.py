"""GateLoop: linear attention whose memory every token shrinks and turns by angles of its choice.

Per head, the state is K x V complex numbers:

    S_t = Diag(a_t) S_{t-1} + k_t v_t^T        a_t = sigmoid(W_m x_t + b) exp(i (W_p x_t + c))
    y_t = W_out (Re(S_t^T q_t) * silu(W_gate x_t))

with q, k and v real and * elementwise. Without the phase a_t is real, and the layer is
gated linear attention without its scale. The paper's layer has as many heads as features
and K = V = 1. Here a_t, what is written and S_t are each B T H K V complex numbers, 24 bytes
per token and H K V (12 without the phase), and the backward pass keeps two of them: wide
heads are costly.

Reference: Katsch, "GateLoop: Fully Data-Controlled Linear Recurrence for Sequence
Modeling", 2023. Departures: an untrained gate has a given half-life; all weights learn at
one rate; projections start as Flax starts them.
"""

import math

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import complex_pair
from layers.dense import Dense
from pallas_kernels.diag_scan import diag_scan

# Dims: B batch, T tokens, H heads, K key width, V value width, D model, F features, 2 real and imaginary part.


@jax.custom_vjp
def turning_gate(logit, angle):
  """Returns sigmoid(logit) exp(i angle).

  Its backward pass needs no sine: with p = a da, dlogit = (1 - |a|) Re p and dangle = -Im p. Differentiation
  evaluates sine and cosine again, twice, which was a sixth of the layer's time on a CPU.
  """
  return jax.lax.complex(nn.sigmoid(logit) * jnp.cos(angle), nn.sigmoid(logit) * jnp.sin(angle))


def _turning_gate_forward(logit, angle):
  a = turning_gate(logit, angle)
  return a, (a, logit)


def _turning_gate_backward(kept, da):
  a, logit = kept
  p = a * da
  return nn.sigmoid(-logit) * p.real, -p.imag


turning_gate.defvjp(_turning_gate_forward, _turning_gate_backward)


def gate_loop(q_BTHK, k_BTHK, v_BTHV, a_BTHK, S_BHKV=None, segment_ids_BT=None, *, backend="auto"):
  """Runs the recurrence; real or complex as a is.

  Args:
    q_BTHK, k_BTHK, v_BTHV: queries, keys and values, real.
    a_BTHK: what the memory is multiplied with.
    S_BHKV: memory left by earlier tokens, of a's dtype; zeros if None.
    segment_ids_BT: of the tokens, or None.
    backend: of the kernel.

  Returns:
    (y_BTHV real, S_BHKV after the last token).
  """
  # An einsum: its gradients are products of matrices, where those of a multiplication are slow sums.
  write_BTHKV = jnp.einsum("bthk,bthv->bthkv", k_BTHK, v_BTHV, precision=jax.lax.Precision.HIGHEST)
  a_BTHKV = jnp.broadcast_to(a_BTHK[..., None], write_BTHKV.shape)
  S_BTHKV, S_BHKV = diag_scan(a_BTHKV, write_BTHKV, h0=S_BHKV, segment_ids=segment_ids_BT, backend=backend)
  return jnp.einsum("bthk,bthkv->bthv", q_BTHK, S_BTHKV.real), S_BHKV


class GateLoop(nn.Module):
  """The mixer: project, shrink and turn, gate, project back.

  Attributes:
    heads: number of heads H; the model's width in the paper.
    key_dim: K, per head.
    value_dim: V, per head.
    phase: whether the memory is turned; False keeps it real.
    half_life: tokens after which an untrained head has halved its memory.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Gates and state stay in float32.
  """

  heads: int = 128
  key_dim: int = 1
  value_dim: int = 1
  phase: bool = True
  half_life: float = 16.0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memory, S_BHKV or, with the phase, S_BHKV2."""
    shape = (batch, self.heads, self.key_dim, self.value_dim)
    return dict(S_BHKV2=jnp.zeros((*shape, 2))) if self.phase else dict(S_BHKV=jnp.zeros(shape))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    H, K, V = self.heads, self.key_dim, self.value_dim
    if min(H, K, V) < 1 or self.half_life <= 0:
      raise ValueError(f"heads={H}, key_dim={K} and value_dim={V} must be at least 1 "
                       f"and half_life={self.half_life} tokens above 0.")
    heads = lambda y: rearrange(y.astype(jnp.float32), "b t (h k) -> b t h k", h=H)

    def project(width, name):
      return Dense(width, use_bias=False, dtype=self.dtype, name=name)

    q_BTHK, k_BTHK, v_BTHV = (
        heads(project(H * width, name)(x_BTD)) for name, width in (("query", K), ("key", K), ("value", V)))
    # sigmoid(bias) = 2^(-1 / half_life), by the logit that keeps its digits.
    bias = -math.log(math.expm1(math.log(2) / self.half_life))
    x32_BTD = x_BTD.astype(jnp.float32)
    decay = Dense(H * K, bias_init=nn.initializers.constant(bias), name="magnitude")
    logit_BTHK = heads(decay(x32_BTD))
    if self.phase:
      a_BTHK = turning_gate(logit_BTHK, heads(Dense(H * K, name="phase")(x32_BTD)))
      memory = state and complex_pair.join(state["S_BHKV2"])
    else:
      a_BTHK = nn.sigmoid(logit_BTHK)
      memory = state and state["S_BHKV"]

    y_BTHV, S_BHKV = gate_loop(q_BTHK, k_BTHK, v_BTHV, a_BTHK, memory, segment_ids, backend=self.backend)
    y_BTF = rearrange(y_BTHV, "b t h v -> b t (h v)").astype(self.dtype)
    y_BTF *= nn.silu(project(H * V, "gate")(x_BTD))
    final = dict(S_BHKV2=complex_pair.split(S_BHKV)) if self.phase else dict(S_BHKV=S_BHKV)
    return project(x_BTD.shape[-1], "out")(y_BTF), final
