"""Linear systems with a dense transition that does not change with time, in two forms.

    s_t = A s_{t-1} + B u_t        per channel; A is N x N, B and s are N-vectors

`recurrent` takes token after token and keeps packed documents apart. `responses` gives the powers
of A on vectors, by doubling, for the convolution with the filter A^l B, l = 0 .. T-1.

Reference: Gu et al., "Combining Recurrent, Convolutional, and Continuous-time Models with Linear
State-Space Layers", 2021, section 3.
"""

import jax
import jax.numpy as jnp

# Dims: B batch, T tokens, F channels, N order of the state, X vectors.


def recurrent(A, B_FN, u_BTF, state_BFN, segment_ids=None, readout=lambda s_BFN: s_BFN):
  """Runs the system token by token in float32.

  Args:
    A: transition, [F,N,N], or [N,N] if all channels share it.
    B_FN: input vectors, [1,N] if shared.
    u_BTF: inputs.
    state_BFN: state before the first segment.
    segment_ids: [B,T]; a run of equal ids is a sequence of its own, tokens with negative ids are
      skipped.
    readout: function of s_BFN whose result, [B,...], is kept for every token.

  Returns:
    (the readouts, [B,T,...]; state after the last token that is not skipped).
  """
  B, T, _ = u_BTF.shape
  ids_BT = jnp.zeros((B, T), jnp.int32) if segment_ids is None else segment_ids

  def step(carry, token):
    s_BFN, last_B = carry
    u_BF, id_B = token
    real_B = id_B >= 0
    begins_B = real_B & (last_B >= 0) & (id_B != last_B)
    s_BFN = jnp.where(begins_B[:, None, None], 0, s_BFN)
    new_BFN = apply(A, s_BFN) + B_FN[None] * u_BF[..., None]
    s_BFN = jnp.where(real_B[:, None, None], new_BFN, s_BFN)
    return (s_BFN, jnp.where(real_B, id_B, last_B)), readout(s_BFN)

  start = state_BFN.astype(jnp.float32), jnp.full(B, -1, ids_BT.dtype)
  tokens = jnp.moveaxis(u_BTF.astype(jnp.float32), 1, 0), ids_BT.T
  (state_BFN, _), y = jax.lax.scan(step, start, tokens)
  return jnp.moveaxis(y, 0, 1), state_BFN


def apply(A, s_XFN):
  """Returns A s for each vector; A as in `recurrent`."""
  return jnp.einsum("xfn,mn->xfm" if A.ndim == 2 else "xfn,fmn->xfm", s_XFN, A)


def responses(A, s_XFN, length: int):
  """Returns A^l s for l = 0 .. length - 1, [length, X, F, N], in log2 length products."""
  done, X = s_XFN[None], s_XFN.shape[0]
  while len(done) < length:
    flat = done.reshape(-1, *done.shape[2:])
    done = jnp.concatenate([done, apply(A, flat).reshape(-1, X, *done.shape[2:])])
    A = A @ A
  return done[:length]
