"""Kimi Delta Attention: the delta rule on a memory whose key channels fade at their own rates.

Per head, with unit keys k_t and queries q_t, after a causal convolution and silu on
q, k and v, the state is K x V:

    S'_t = Diag(a_t) S_{t-1}
    S_t = S'_t + beta_t k_t (v_t - S'_t^T k_t)^T        beta_t = sigmoid(w_h . x_t)
    y_t = RMSNorm(S_t^T q_t / sqrt(K)) * sigmoid(W_4 W_3 x_t + c)

    log a_t = -A_h softplus(z_t),  "softplus"        z_t = W_2 W_1 x_t + b, per channel
    log a_t = -5 sigmoid(A_h z_t),  "bounded": the log decay of 16 tokens fits float32

W_1 and W_3 are D x V. beta is doubled with negative_eigenvalues.

Reference: Kimi Team, "Kimi Linear", 2025. Departure: projections start as Flax starts them.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp

from layers import conv_heads, step_decay
from layers.dense import Dense
from layers.l2_norm import l2_norm
from layers.norms.rms_norm import RMSNorm
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, H heads, K key width, V value width, D model, F features.

GATES = ("softplus", "bounded")
LOWEST = -5.0  # nats per token, of the bounded gate


class KDA(nn.Module):
  """The mixer: project, convolve, forget by channel, correct the memory, normalise, gate, project back.

  Attributes:
    heads: number of heads H.
    key_dim: K, per head.
    value_dim: V, per head; also the rank of both gates.
    conv: width of the convolutions, in tokens; 0 leaves them out.
    decay_gate: one of GATES.
    negative_eigenvalues: whether beta reaches to 2 instead of 1.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Decays, beta and state stay in float32.
  """

  heads: int = 4
  key_dim: int = 32
  value_dim: int = 32
  conv: int = 4
  decay_gate: str = "softplus"
  negative_eigenvalues: bool = False
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memory S_BHKV and, with convolutions, the inputs before the first."""
    H, K, V = self.heads, self.key_dim, self.value_dim
    past = conv_heads.init_state(batch, self.conv, self.dtype, dict(query=H * K, key=H * K, value=H * V))
    return dict(past, S_BHKV=jnp.zeros((batch, H, K, V), jnp.float32))

  def _log_decay(self, x_BTD):
    low_BTV = Dense(self.value_dim, use_bias=False, name="decay_in")(x_BTD.astype(jnp.float32))
    logit = Dense(self.heads * self.key_dim, bias_init=step_decay.step_bias_init(), name="decay_out")
    z_BTHK = rearrange(logit(low_BTV), "b t (h k) -> b t h k", h=self.heads)
    softplus = self.decay_gate == "softplus"
    init = step_decay.log_rate_init(1.0, 16.0) if softplus else nn.initializers.zeros
    A_log_11H1 = self.param("A_log", init, (self.heads,))[None, None, :, None]
    if softplus:
      return step_decay.log_decay(z_BTHK, A_log_11H1)
    return LOWEST * nn.sigmoid(jnp.exp(A_log_11H1) * z_BTHK)

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    conv_heads.check(self.conv)
    if self.decay_gate not in GATES:
      raise ValueError(f"decay_gate={self.decay_gate!r} is unknown; choose from {', '.join(GATES)}.")
    past = state or {}

    def project(name, width):
      return conv_heads.project(
          x_BTD, name, self.heads, width, conv=self.conv, past=past, segment_ids=segment_ids,
          dtype=self.dtype, activation=nn.silu)

    q_BTHK, past_q = project("query", self.key_dim)
    k_BTHK, past_k = project("key", self.key_dim)
    v_BTHV, past_v = project("value", self.value_dim)
    strength = Dense(self.heads, use_bias=False, name="beta")
    beta_BTH = nn.sigmoid(strength(x_BTD.astype(jnp.float32))) * (1 + self.negative_eigenvalues)

    y_BTHV, S_BHKV = chunk_recurrence(
        l2_norm(q_BTHK), l2_norm(k_BTHK), v_BTHV, self._log_decay(x_BTD), beta_BTH,
        initial_state=past.get("S_BHKV"), segment_ids=segment_ids, return_final_state=True,
        chunk=self.chunk or None, backend=self.backend)
    y_BTF = rearrange(RMSNorm(eps=1e-5, name="norm")(y_BTHV), "b t h v -> b t (h v)")
    low_BTV = Dense(self.value_dim, use_bias=False, dtype=self.dtype, name="gate_in")(x_BTD)
    y_BTF *= nn.sigmoid(Dense(y_BTF.shape[-1], dtype=self.dtype, name="gate_out")(low_BTV))
    y_BTD = Dense(x_BTD.shape[-1], use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    return y_BTD, dict(**past_q, **past_k, **past_v, S_BHKV=S_BHKV)
