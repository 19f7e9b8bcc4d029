"""Gated DeltaNet: the memory fades, then the delta rule corrects what is left.

Per head, with unit keys k_t and queries q_t, after a causal convolution and silu on
q, k and v, the state is K x V:

    S'_t = a_t S_{t-1}                    a_t = exp(-A_h softplus(u_h . x_t + b_h))
    S_t = S'_t + beta_t k_t (v_t - S'_t^T k_t)^T        beta_t = sigmoid(w_h . x_t)
    y_t = RMSNorm(S_t^T q_t / sqrt(K)) * silu(W_gate x_t)

beta is doubled with negative_eigenvalues. G key heads serve the H value heads.

References: Yang et al., "Gated Delta Networks", 2024; Grazzi et al., "Unlocking
State-Tracking in Linear RNNs Through Negative Eigenvalues", 2024. Departures: A starts
above 1e-3, since its paper's lower end of 0 has no logarithm; projections start as Flax
starts them.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp

from layers import conv_heads, step_decay
from layers.dense import Dense
from layers.l2_norm import l2_norm
from layers.norms.rms_norm import RMSNorm
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, H value heads, G key heads, K key width, V value width, D model, F features.


class GatedDeltaNet(nn.Module):
  """The mixer: project, convolve, forget, correct the memory, normalise, gate, project back.

  Attributes:
    heads: number of value heads H.
    groups: number of key heads G, a divisor of heads; 0 means heads.
    key_dim: K, per key head.
    value_dim: V, per head.
    conv: width of the convolutions, in tokens; 0 leaves them out.
    negative_eigenvalues: whether beta reaches to 2 instead of 1.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Decays, beta and state stay in float32.
  """

  heads: int = 4
  groups: int = 0
  key_dim: int = 32
  value_dim: int = 64
  conv: int = 4
  negative_eigenvalues: bool = False
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memory S_BHKV and, with convolutions, the inputs before the first."""
    H, K, V = self.heads, self.key_dim, self.value_dim
    G = self.groups or H
    past = conv_heads.init_state(batch, self.conv, self.dtype, dict(query=G * K, key=G * K, value=H * V))
    return dict(past, S_BHKV=jnp.zeros((batch, H, K, V), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    conv_heads.check(self.conv)
    if self.groups and self.heads % self.groups:
      raise ValueError(f"groups={self.groups} must divide heads={self.heads}.")
    G, past = self.groups or self.heads, state or {}

    def project(name, heads, width):
      return conv_heads.project(
          x_BTD, name, heads, width, conv=self.conv, past=past, segment_ids=segment_ids,
          dtype=self.dtype, activation=nn.silu)

    q_BTGK, past_q = project("query", G, self.key_dim)
    k_BTGK, past_k = project("key", G, self.key_dim)
    v_BTHV, past_v = project("value", self.heads, self.value_dim)
    x32_BTD = x_BTD.astype(jnp.float32)
    strength = Dense(self.heads, use_bias=False, name="beta")
    beta_BTH = nn.sigmoid(strength(x32_BTD)) * (1 + self.negative_eigenvalues)
    A_log_H = self.param("A_log", step_decay.log_rate_init(1e-3, 16.0), (self.heads,))
    step = Dense(self.heads, bias_init=step_decay.step_bias_init(), name="decay")
    log_a_BTH = step_decay.log_decay(step(x32_BTD), A_log_H[None, None])

    y_BTHV, S_BHKV = chunk_recurrence(
        l2_norm(q_BTGK), l2_norm(k_BTGK), v_BTHV, log_a_BTH, beta_BTH,
        initial_state=past.get("S_BHKV"), segment_ids=segment_ids, return_final_state=True,
        chunk=self.chunk or None, backend=self.backend)
    y_BTF = rearrange(RMSNorm(eps=1e-5, name="norm")(y_BTHV), "b t h v -> b t (h v)")
    y_BTF *= nn.silu(Dense(y_BTF.shape[-1], use_bias=False, dtype=self.dtype, name="gate")(x_BTD))
    y_BTD = Dense(x_BTD.shape[-1], use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    return y_BTD, dict(**past_q, **past_k, **past_v, S_BHKV=S_BHKV)
