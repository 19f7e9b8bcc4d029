"""Linear attention: softmax's kernel replaced by a product of features, so that sums can be kept.

Per head, with features f of queries and keys, the state is Kf x V (and Kf):

    S_t = S_{t-1} + f(k_t) v_t^T        z_t = z_{t-1} + f(k_t)
    y_t = S_t^T f(q_t) / (z_t^T f(q_t) + eps)        with denominator, eps = 1e-6
    y_t = S_t^T f(q_t) / sqrt(K)                     without, then RMSNorm if wanted

Features of x, K wide: "elu1" 1 + elu(x); "relu"; "identity"; "l2" x / |x|; "taylor"
[1, x / K^(1/4), (x outer x) / sqrt(2K)], whose products are 1 + s + s^2 / 2 at
s = q . k / sqrt(K); "hedgehog" [softmax(W x), softmax(-W x)], one W per head for queries
and one for keys, the identity at first.

References: Katharopoulos et al., "Transformers are RNNs", 2020 (elu1, denominator);
Qin et al., "The Devil in Linear Transformer", 2022 (norm instead of denominator); Arora
et al., "Simple linear attention language models", 2024 (taylor); Zhang et al., "The
Hedgehog and the Porcupine", 2024. Departure: hedgehog's softmax has no lower clamp.
"""

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import conv_heads, probe
from layers.dense import Dense
from layers.l2_norm import l2_norm
from layers.norms.rms_norm import RMSNorm
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, H heads, K key width, V value width, D model, F features.

POSITIVE = ("elu1", "relu", "taylor", "hedgehog")  # their sums may be divided by
FEATURES = (*POSITIVE, "identity", "l2")
EPS = 1e-6


def taylor(x_BTHK):
  """Returns the 1 + K + K^2 features whose products are 1 + s + s^2 / 2, s = q . k / sqrt(K)."""
  K = x_BTHK.shape[-1]
  square = rearrange(x_BTHK[..., :, None] * x_BTHK[..., None, :], "b t h i j -> b t h (i j)")
  return jnp.concatenate(
      [jnp.ones_like(x_BTHK[..., :1]), x_BTHK * K**-0.25, square * (2 * K) ** -0.5], axis=-1)


def hedgehog(x_BTHK, map_HKK):
  """Returns 2K positive features that sum to 2."""
  y_BTHK = jnp.einsum("bthk,hkj->bthj", x_BTHK, map_HKK.astype(x_BTHK.dtype))
  both = jax.nn.softmax(y_BTHK.astype(jnp.float32)), jax.nn.softmax(-y_BTHK.astype(jnp.float32))
  return jnp.concatenate(both, axis=-1).astype(x_BTHK.dtype)


def entropy(f_BTHF, g_BTHF, segment_ids_BT=None):
  """Returns the entropy [B, T] in nats of what each token reads, mean over heads.

  Args:
    f_BTHF, g_BTHF: features of queries and keys, none negative.
    segment_ids_BT: tokens read only from their own segment; None is one segment.
  """
  T = f_BTHF.shape[1]
  seen_BTT = jnp.tril(jnp.ones((1, T, T), bool))
  if segment_ids_BT is not None:
    seen_BTT &= segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
  scores_BHTT = jnp.einsum("bthf,bshf->bhts", f_BTHF, g_BTHF, preferred_element_type=jnp.float32)
  scores_BHTT = jnp.where(seen_BTT[:, None], scores_BHTT, 0.0)
  p_BHTT = scores_BHTT / (jnp.sum(scores_BHTT, axis=-1, keepdims=True) + EPS)
  return jnp.mean(jnp.sum(jax.scipy.special.entr(p_BHTT), axis=-1), axis=1)


PLAIN = {"elu1": lambda x: 1 + nn.elu(x), "relu": nn.relu, "identity": lambda x: x, "l2": l2_norm,
         "taylor": taylor}


class LinearAttention(nn.Module):
  """The mixer: project, take features, sum, divide or normalise, project back.

  Attributes:
    heads: number of heads H.
    key_dim: K, per head.
    value_dim: V, per head.
    feature_map: one of FEATURES.
    denominator: whether to divide by the sum of scores; for positive features only.
    output_norm: whether an RMSNorm per head follows.
    conv: width of the convolutions, in tokens, with silu after them; 0 leaves both out.
    chunk: tokens per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections and features. The state stays in float32.
  """

  heads: int = 4
  key_dim: int = 32
  value_dim: int = 32
  feature_map: str = "elu1"
  denominator: bool = True
  output_norm: bool = False
  conv: int = 0
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty sums S_BHKV, z its last column, and with convolutions their past inputs."""
    H, K, V = self.heads, self.key_dim, self.value_dim
    past = conv_heads.init_state(batch, self.conv, self.dtype, dict(query=H * K, key=H * K, value=H * V))
    width = {"taylor": 1 + K + K * K, "hedgehog": 2 * K}.get(self.feature_map, K)
    return dict(past, S_BHKV=jnp.zeros((batch, H, width, V + self.denominator), jnp.float32))

  def _check(self):
    conv_heads.check(self.conv)
    if self.feature_map not in FEATURES:
      raise ValueError(f"feature_map={self.feature_map!r} is unknown; choose from {', '.join(FEATURES)}.")
    if self.denominator and self.feature_map not in POSITIVE:
      raise ValueError(f"feature_map={self.feature_map!r} has scores of both signs, whose sum may vanish; "
                       f"take denominator=False or one of {', '.join(POSITIVE)}.")

  def _features(self, x_BTHK, name):
    if self.feature_map != "hedgehog":
      return PLAIN[self.feature_map](x_BTHK)
    identity = lambda key, shape: jnp.broadcast_to(jnp.eye(shape[-1]), shape)
    return hedgehog(x_BTHK, self.param(f"{name}_map", identity, (self.heads, *2 * [self.key_dim])))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    self._check()
    past = state or {}

    def project(name, width):
      return conv_heads.project(
          x_BTD, name, self.heads, width, conv=self.conv, past=past, segment_ids=segment_ids,
          dtype=self.dtype, activation=nn.silu if self.conv else lambda y: y)

    q_BTHK, past_q = project("query", self.key_dim)
    k_BTHK, past_k = project("key", self.key_dim)
    v_BTHV, past_v = project("value", self.value_dim)
    if self.denominator:  # z is the S of a value that is always one
      v_BTHV = jnp.concatenate([v_BTHV, jnp.ones_like(v_BTHV[..., :1])], axis=-1)

    f_BTHF, g_BTHF = self._features(q_BTHK, "query"), self._features(k_BTHK, "key")
    if self.denominator and state is None:  # the rows that an older state has read are gone
      probe.show(self, "attention_entropy_BT", lambda: entropy(f_BTHF, g_BTHF, segment_ids))
    y_BTHV, S_BHKV = chunk_recurrence(
        f_BTHF, g_BTHF, v_BTHV,
        scale=1.0 if self.denominator else self.key_dim**-0.5, initial_state=past.get("S_BHKV"),
        segment_ids=segment_ids, return_final_state=True, chunk=self.chunk or None,
        backend=self.backend)
    if self.denominator:
      y_BTHV = y_BTHV[..., :-1] / (y_BTHV[..., -1:] + EPS)
    if self.output_norm:
      y_BTHV = RMSNorm(eps=1e-5, name="norm")(y_BTHV)
    y_BTF = rearrange(y_BTHV, "b t h v -> b t (h v)")
    y_BTD = Dense(x_BTD.shape[-1], use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    return y_BTD, dict(**past_q, **past_k, **past_v, S_BHKV=S_BHKV)
