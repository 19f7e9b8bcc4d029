"""HGRN2: a gated recurrence whose keys are what its gates let go.

Per head, the state is K x V:

    S_t = Diag(a_t) S_{t-1} + (1 - a_t) v_t^T        a_t = l + (1 - l) sigmoid(W_f x_t)
    y = RMSNorm(S_t^T q_t / sqrt(K))        q_t = silu(W_q x_t)

The norm runs over all H V channels. l in [0, 1) is a lower bound on the memory: without
one, a gate at zero halves it at every token.

Reference: Qin et al., "HGRN2: Gated Linear RNNs with State Expansion", 2024. Departures:
l is a field, where the paper learns bounds that rise with depth; projections start as
Flax starts them.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp

from layers import conv_heads
from layers.dense import Dense
from layers.norms.rms_norm import RMSNorm
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, H heads, K key width, V value width, D model, F features.

TINY = dict(conv=3, lower_bound=0.3)


def log_forget(z, lower_bound: float):
  """Returns log(l + (1 - l) sigmoid(z)), with a gradient at every z also where l is 0."""
  if not lower_bound:
    return nn.log_sigmoid(z)
  return jnp.log1p(-(1 - lower_bound) * nn.sigmoid(-z))


class HGRN2(nn.Module):
  """The mixer: project, forget by channel, write what was forgotten, normalise, project back.

  Attributes:
    heads: number of heads H.
    key_dim: K, per head, the factor by which the state is wider than its input.
    value_dim: V, per head.
    lower_bound: l.
    conv: width of the convolutions, in tokens; 0 leaves them out.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Decays and state stay in float32.
  """

  heads: int = 4
  key_dim: int = 32
  value_dim: int = 32
  lower_bound: float = 0.0
  conv: int = 0
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memory S_BHKV and, with convolutions, the inputs before the first."""
    H, K, V = self.heads, self.key_dim, self.value_dim
    past = conv_heads.init_state(batch, self.conv, self.dtype, dict(query=H * K, forget=H * K, value=H * V))
    return dict(past, S_BHKV=jnp.zeros((batch, H, K, V), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    conv_heads.check(self.conv)
    if not 0 <= self.lower_bound < 1:
      raise ValueError(f"lower_bound={self.lower_bound} must lie in [0, 1); at 1 nothing is ever written.")
    past = state or {}

    def project(name, width, activation):
      return conv_heads.project(
          x_BTD, name, self.heads, width, conv=self.conv, past=past, segment_ids=segment_ids,
          dtype=self.dtype, activation=activation)

    identity = lambda y: y
    q_BTHK, past_q = project("query", self.key_dim, nn.silu)
    z_BTHK, past_f = project("forget", self.key_dim, identity)
    v_BTHV, past_v = project("value", self.value_dim, nn.silu if self.conv else identity)
    log_a_BTHK = log_forget(z_BTHK.astype(jnp.float32), self.lower_bound)
    k_BTHK = -jnp.expm1(log_a_BTHK)

    y_BTHV, S_BHKV = chunk_recurrence(
        q_BTHK, k_BTHK.astype(self.dtype), v_BTHV, log_a_BTHK, initial_state=past.get("S_BHKV"),
        segment_ids=segment_ids, return_final_state=True, chunk=self.chunk or None,
        backend=self.backend)
    y_BTF = RMSNorm(eps=1e-5, name="norm")(rearrange(y_BTHV, "b t h v -> b t (h v)"))
    y_BTD = Dense(x_BTD.shape[-1], use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    return y_BTD, dict(**past_q, **past_f, **past_v, S_BHKV=S_BHKV)
