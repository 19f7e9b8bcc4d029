"""DeltaProduct: several corrections of the memory per token, so that its map may rotate.

Per head, with N unit keys k_{t,n}, values v_{t,n} and strengths beta_{t,n} per token, after
a causal convolution and silu (or another activation) on q, k and v, the state is K x V:

    S <- a_t S_{t-1}                      a_t = exp(-A_h softplus(u_h . x_t + b_h)), or 1
    S <- S + beta_{t,n} k_{t,n} (v_{t,n} - S^T k_{t,n})^T        n = 1..N, then S_t = S
    y_t = RMSNorm(S_t^T q_t / sqrt(K)) * silu(W_gate x_t)

With beta = 2 sigmoid(..) in (0, 2), N = 2 reflections make any plane rotation and N = K
any orthogonal map. The kernel sees N T tokens, of which every N-th is read.

Reference: Siems et al., "DeltaProduct", 2025. Departures: A starts above 1e-3, since its
paper's lower end of 0 has no logarithm; projections start as Flax starts them.
"""

from einops import rearrange
import flax.linen as nn
import jax.numpy as jnp

from layers import conv_heads, step_decay
from layers.activations import activation
from layers.dense import Dense
from layers.l2_norm import l2_norm
from layers.norms.rms_norm import RMSNorm
from pallas_kernels.chunk_recurrence import chunk_recurrence

# Dims: B batch, T tokens, N factors per token, S = N T, H heads, M = N H, K key width, V value width,
# D model, F features.


def interleave(q_BTHK, k_BTMK, v_BTMV, log_a_BTH, beta_BTM, segment_ids_BT, factors: int):
  """Lays N micro-steps per token out in time, from arrays with M = N H heads.

  Returns:
    (q_BSHK, k_BSHK, v_BSHV, log_a_BSH or None, beta_BSH, segment_ids_BS or None): the
    first micro-step of a token decays, the last one asks.
  """
  N = factors
  steps = lambda x: rearrange(x, "b t (n h) ... -> b (t n) h ...", n=N)
  def only(x_BTH, n):
    pad = [(0, 0)] * x_BTH.ndim
    pad.insert(2, (n, N - 1 - n))
    return rearrange(jnp.pad(x_BTH[:, :, None], pad), "b t n ... -> b (t n) ...")
  return (only(q_BTHK, N - 1), steps(k_BTMK), steps(v_BTMV),
          None if log_a_BTH is None else only(log_a_BTH, 0), steps(beta_BTM),
          None if segment_ids_BT is None else jnp.repeat(segment_ids_BT, N, axis=1))


class DeltaProduct(nn.Module):
  """The mixer: project, convolve, forget, correct the memory N times, normalise, gate, project back.

  Attributes:
    heads: number of heads H.
    key_dim: K, per head.
    value_dim: V, per head.
    householder: N, Householder factors per token.
    forget_gate: whether the memory fades; without, a_t = 1.
    negative_eigenvalues: whether beta reaches to 2 instead of 1.
    conv: width of the convolutions, in tokens; 0 leaves them out.
    activation: of q, k and v, a name of layers/activations.py.
    chunk: micro-steps per chunk, a power of two; 0 takes the kernel's measured choice.
    backend: of the kernel, "auto" or a name that it knows.
    dtype: dtype of the projections. Decays, beta and state stay in float32.
  """

  heads: int = 4
  key_dim: int = 32
  value_dim: int = 64
  householder: int = 2
  forget_gate: bool = True
  negative_eigenvalues: bool = True
  conv: int = 4
  activation: str = "silu"
  chunk: int = 0
  backend: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the empty memory S_BHKV and, with convolutions, the inputs before the first."""
    H, K, V, M = self.heads, self.key_dim, self.value_dim, self.heads * self.householder
    past = conv_heads.init_state(batch, self.conv, self.dtype, dict(query=H * K, key=M * K, value=M * V))
    return dict(past, S_BHKV=jnp.zeros((batch, H, K, V), jnp.float32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    conv_heads.check(self.conv)
    if self.householder < 1:
      raise ValueError(f"householder={self.householder} factors must be at least 1; with 1 this is GatedDeltaNet.")
    N, M, past = self.householder, self.householder * self.heads, state or {}

    def project(name, heads, width):
      return conv_heads.project(
          x_BTD, name, heads, width, conv=self.conv, past=past, segment_ids=segment_ids,
          dtype=self.dtype, activation=activation(self.activation))

    q_BTHK, past_q = project("query", self.heads, self.key_dim)
    k_BTMK, past_k = project("key", M, self.key_dim)
    v_BTMV, past_v = project("value", M, self.value_dim)
    x32_BTD, log_a_BTH = x_BTD.astype(jnp.float32), None
    strength = Dense(M, use_bias=False, name="beta")
    beta_BTM = nn.sigmoid(strength(x32_BTD)) * (1 + self.negative_eigenvalues)
    if self.forget_gate:
      A_log_H = self.param("A_log", step_decay.log_rate_init(1e-3, 16.0), (self.heads,))
      step = Dense(self.heads, bias_init=step_decay.step_bias_init(), name="decay")
      log_a_BTH = step_decay.log_decay(step(x32_BTD), A_log_H[None, None])

    q, k, v, log_a, beta, ids = interleave(
        l2_norm(q_BTHK), l2_norm(k_BTMK), v_BTMV, log_a_BTH, beta_BTM, segment_ids, N)
    y_BSHV, S_BHKV = chunk_recurrence(
        q, k, v, log_a, beta, initial_state=past.get("S_BHKV"), segment_ids=ids,
        return_final_state=True, chunk=self.chunk or None, backend=self.backend)
    y_BTHV = RMSNorm(eps=1e-5, name="norm")(y_BSHV[:, N - 1::N])
    y_BTF = rearrange(y_BTHV, "b t h v -> b t (h v)")
    y_BTF *= nn.silu(Dense(y_BTF.shape[-1], use_bias=False, dtype=self.dtype, name="gate")(x_BTD))
    y_BTD = Dense(x_BTD.shape[-1], use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    return y_BTD, dict(**past_q, **past_k, **past_v, S_BHKV=S_BHKV)
