"""DiagAttention: softmax attention inside blocks of W tokens that do not overlap.

With positions p counted from the start of a document, token t reads the earlier tokens of its block:

    y_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s        s <= t, floor(p_s / W) = floor(p_t / W)

With weights="relu" the softmax is a bare max(., 0), and y is divided by its root mean square over
all heads. Cost and state are those of W tokens, whatever T: the keys and values of the running
block. A row is cut every W tokens wherever its documents begin, and each cut reads itself and the
W tokens before it, so a block is always whole in what is read.

Reference: Qin et al., "The Devil in Linear Transformer", 2022: softmax in its T2, relu in its T1,
in the first half of the layers. Departures: rotary positions, which it has not and rope_theta=0
leaves out; no token ever reads padding.
"""

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import rope, segments
from layers.dense import Dense
from layers.norms.rms_norm import rms_norm

# Dims: B batch, T new tokens, W block, S = W + T tokens with the cached ones, N cuts, H heads, K head width.

WEIGHTS = ("softmax", "relu")
TINY = dict(block=3)


def cuts(x_BT, block: int):
  """Returns [B,N,W,...] of [B,T,...], with zeros after the last token."""
  T = x_BT.shape[1]
  padded = jnp.pad(x_BT, ((0, 0), (0, -T % block)) + ((0, 0),) * (x_BT.ndim - 2))
  return padded.reshape(x_BT.shape[0], -1, block, *x_BT.shape[2:])


def sources(x_BS, block: int):
  """Returns [B,N,2W,...]: what cut n of the new tokens may read, the W tokens before it and itself."""
  here = cuts(x_BS[:, block:], block)
  # The tokens before a cut start W earlier on the line; its last cut is nobody's past.
  before = cuts(x_BS, block)[:, :here.shape[1]]
  return jnp.concatenate([before, here], axis=2)


def block_scores(q_BNWHK, k_BNJHK, mask_BNWJ, weights: str):
  """Returns the weights of every reader W on every source J, [B,N,H,W,J] in float32."""
  scores_BNHWJ = jnp.einsum("bnwhk,bnjhk->bnhwj", q_BNWHK, k_BNJHK, preferred_element_type=jnp.float32)
  scores_BNHWJ *= q_BNWHK.shape[-1] ** -0.5
  mask_BNHWJ = mask_BNWJ[:, :, None]
  if weights == "relu":
    return jnp.where(mask_BNHWJ, nn.relu(scores_BNHWJ), 0)
  # A finite floor: the softmax of a reader that sees nothing, which is padding, stays a number.
  return jax.nn.softmax(jnp.where(mask_BNHWJ, scores_BNHWJ, jnp.finfo(jnp.float32).min), axis=-1)


class DiagAttention(nn.Module):
  """The mixer: project, rotate, attend within blocks, project back.

  Attributes:
    heads: number of heads H.
    head_dim: K, per head.
    block: W, in tokens.
    weights: "softmax", or "relu" with a norm after it.
    rope_theta: base of the rotary wavelengths; 0 leaves positions out.
    dtype: dtype of the products; softmax is float32.
  """

  heads: int = 4
  head_dim: int = 32
  block: int = 64
  weights: str = "softmax"
  rope_theta: float = 10_000.0
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns the keys and values of no block, and seen_B, the tokens of the segment so far."""
    slots = (batch, self.block, self.heads, self.head_dim)
    return dict(k_BWHK=jnp.zeros(slots, self.dtype), v_BWHK=jnp.zeros(slots, self.dtype),
                seen_B=jnp.zeros(batch, jnp.int32))

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    B, T, D = x_BTD.shape
    if self.weights not in WEIGHTS:
      raise ValueError(f"weights={self.weights!r} is unknown; choose from {', '.join(WEIGHTS)}.")
    if self.block < 1:
      raise ValueError(f"block={self.block} must be at least 1 token.")
    state = self.init_state(B) if state is None else state
    project = lambda name: Dense(
        (self.heads, self.head_dim), use_bias=False, dtype=self.dtype, name=name)(x_BTD)
    q_BTHK, k_BTHK, v_BTHK = project("query"), project("key"), project("value")
    ids_BT = jnp.zeros((B, T), jnp.int32) if segment_ids is None else segment_ids
    position_BT, seen_B = segments.positions(ids_BT, state["seen_B"])
    if self.rope_theta:
      q_BTHK, k_BTHK = (rope.rotate(x, position_BT, self.rope_theta) for x in (q_BTHK, k_BTHK))

    past_BW = state["seen_B"][:, None] + jnp.arange(-self.block, 0)[None]
    ids_BW = jnp.where(past_BW >= 0, segments.first_segment(ids_BT)[:, None], -1)
    join = lambda past, new: jnp.concatenate([past, new], axis=1)
    line = dict(k=join(state["k_BWHK"], k_BTHK), v=join(state["v_BWHK"], v_BTHK),
                ids=join(ids_BW, ids_BT), position=join(past_BW, position_BT))
    y_BTHK = self._read(q_BTHK, line)
    y_BTF = rearrange(y_BTHK, "b t h k -> b t (h k)")
    if self.weights == "relu":
      y_BTF = rms_norm(y_BTF)
    y_BTD = Dense(D, use_bias=False, dtype=self.dtype, name="out")(y_BTF)
    return y_BTD, dict(self._running_block(line, seen_B, ids_BT), seen_B=seen_B)

  def _read(self, q_BTHK, line):
    W, T = self.block, q_BTHK.shape[1]
    # Padded with id 0 a cut would read its own filling: one more makes padding negative again.
    ids, position = line["ids"] + 1, line["position"]
    ids_BNJ, ids_BNW = sources(ids, W) - 1, cuts(ids[:, W:], W) - 1
    place_BNJ, place_BNW = sources(position, W), cuts(position[:, W:], W)
    reader, source = (lambda x: x[..., :, None]), (lambda x: x[..., None, :])
    mask_BNWJ = (reader(ids_BNW) == source(ids_BNJ)) & (source(ids_BNJ) >= 0)
    mask_BNWJ &= (reader(place_BNW) // W == source(place_BNJ) // W) & (reader(place_BNW) >= source(place_BNJ))
    p_BNHWJ = block_scores(cuts(q_BTHK, W), sources(line["k"], W), mask_BNWJ, self.weights)
    y_BNWHK = jnp.einsum("bnhwj,bnjhk->bnwhk", p_BNHWJ.astype(q_BTHK.dtype), sources(line["v"], W))
    return rearrange(y_BNWHK, "b n w h k -> b (n w) h k")[:, :T]

  def _running_block(self, line, seen_B, ids_BT):
    """Returns the last W keys and values of the line, zero where the next token will not read them."""
    W, count_B = self.block, segments.tokens_to_last(ids_BT)
    # What the next token, number seen of its document, finds in its block; ids need no second look.
    back_1W = jnp.arange(W, 0, -1)[None]
    live_BW11 = (back_1W <= seen_B[:, None] % W)[..., None, None]
    keep = lambda x_BSHK: jnp.where(live_BW11, segments.window(x_BSHK, count_B, W), 0)
    return dict(k_BWHK=keep(line["k"]), v_BWHK=keep(line["v"]))
