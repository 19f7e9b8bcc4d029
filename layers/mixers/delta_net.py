"""DeltaNet: a linear attention that replaces what a key holds instead of adding to it.

Per head, with unit keys k_t and queries q_t, after a causal convolution and silu on
q, k and v, the state is K x V:

    S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T        0 < beta_t < 1, or < 2
    y_t = RMSNorm(S_t^T q_t / sqrt(K))

beta_t = sigmoid(w_h . x_t), doubled with negative_eigenvalues: the eigenvalue along k_t
is 1 - beta_t, and only a negative one lets a state change its sign.

References: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over
Sequence Length", 2024; Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through
Negative Eigenvalues", 2024. Departure: projections start as Flax starts them.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp

from layers import conv_heads
from layers.dense import Dense
from layers.l2_norm import l2_norm
from layers.norms.rms_norm import RMSNorm
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, H heads, K key width, V value width, D model, F features.


class DeltaNet(nn.Module):
  """The mixer: project, convolve, correct the memory, normalise, project back.

  Attributes:
    heads: number of heads H.
    key_dim: K, per head.
    value_dim: V, per head.
    conv: width of the convolutions, in tokens; 0 leaves them out.
    negative_eigenvalues: whether beta reaches to 2 instead of 1.
    output_gate: whether silu(W x_t) multiplies the normalised output.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. beta and state stay in float32.
  """

  heads: int = 4
  key_dim: int = 32
  value_dim: int = 32
  conv: int = 4
  negative_eigenvalues: bool = False
  output_gate: bool = False
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memory S_BHKV and, with convolutions, the inputs before the first."""
    H, K, V = self.heads, self.key_dim, self.value_dim
    past = conv_heads.init_state(batch, self.conv, self.dtype, dict(query=H * K, key=H * K, value=H * V))
    return dict(past, S_BHKV=jnp.zeros((batch, H, K, V), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    conv_heads.check(self.conv)
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
        l2_norm(q_BTHK), l2_norm(k_BTHK), v_BTHV, beta=beta_BTH, initial_state=past.get("S_BHKV"),
        segment_ids=segment_ids, return_final_state=True, chunk=self.chunk or None,
        backend=self.backend)
    y_BTF = rearrange(RMSNorm(eps=1e-5, name="norm")(y_BTHV), "b t h v -> b t (h v)")
    if self.output_gate:
      y_BTF *= nn.silu(Dense(y_BTF.shape[-1], use_bias=False, dtype=self.dtype, name="gate")(x_BTD))
    y_BTD = Dense(x_BTD.shape[-1], use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    return y_BTD, dict(**past_q, **past_k, **past_v, S_BHKV=S_BHKV)
