"""NormAttention: linear attention that normalises what it read instead of dividing by the scores.

Over all earlier tokens, for all heads together, without a factor 1 / sqrt(K):

    y_t = SRMS([sum_{s <= t} (f(q_t) . f(k_s)) v_s of all heads])        f = 1 + elu

Dividing by sum_s f(q_t) . f(k_s) has slopes as large as one over a score that may be as small as it
likes; the slopes of SRMS(x) = x / sqrt(mean(x^2) + eps) are at most 1 / sqrt(eps).

A whole TransNormer reads locally in its first half of layers (layers/mixers/diag_attention.py):
with depth 4, model.pattern = ("local", "local", "mixer", "mixer") and these two as the nodes.

Reference: Qin et al., "The Devil in Linear Transformer", 2022; f is 1 + elu in its T2, elu in its
T1. Departures: eps stands under the root (there beside it, 1e-8); projections start as Flax
starts them.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp

from layers.dense import Dense
from layers.norms.rms_norm import rms_norm
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, H heads, K key width, V value width, D model, F features.

FEATURES = {"elu1": lambda x: 1 + nn.elu(x), "elu": nn.elu, "relu": nn.relu, "identity": lambda x: x}


class NormAttention(nn.Module):
  """The mixer: project, take features, sum, normalise over all heads, project back.

  Attributes:
    heads: number of heads H.
    key_dim: K, per head.
    value_dim: V, per head.
    feature_map: one of FEATURES; scores may have both signs, nothing is divided by them.
    eps: of the norm.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections and features. The state stays in float32.
  """

  heads: int = 4
  key_dim: int = 32
  value_dim: int = 32
  feature_map: str = "elu1"
  eps: float = 1e-6
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty sums."""
    return jnp.zeros((batch, self.heads, self.key_dim, self.value_dim), jnp.float32)

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    if self.feature_map not in FEATURES:
      raise ValueError(f"feature_map={self.feature_map!r} is unknown; choose from {', '.join(FEATURES)}.")
    if self.eps <= 0:
      raise ValueError(f"eps={self.eps} must be above 0; the slopes are bounded by 1 / sqrt(eps).")
    f = FEATURES[self.feature_map]

    def project(width, name):
      return Dense((self.heads, width), use_bias=False, dtype=self.dtype, name=name)(x_BTD)

    q_BTHK, k_BTHK = f(project(self.key_dim, "query")), f(project(self.key_dim, "key"))
    v_BTHV = project(self.value_dim, "value")
    y_BTHV, state = chunk_recurrence(
        q_BTHK, k_BTHK, v_BTHV, scale=1.0, initial_state=state, segment_ids=segment_ids,
        return_final_state=True, chunk=self.chunk or None, backend=self.backend)
    y_BTF = rms_norm(rearrange(y_BTHV, "b t h v -> b t (h v)"), eps=self.eps)
    y_BTD = Dense(x_BTD.shape[-1], use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    return y_BTD, state
