"""Refuses bad arguments before anything is compiled, with the numbers, the rule and the way out."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels import compat

# Dims: B batch, T tokens, H value heads, G key heads, K key width, V value width.

PRECISIONS = ("mixed", "highest")
SAVE_STATES = ("auto", "save", "recompute")


def arguments(q, k, v, g, beta, initial_state, segment_ids, chunk, precision, save_states):
  """Raises ValueError unless the arguments, already [B,T,heads,width], fit each other."""
  _sequences(q, k, v)
  _gates(q, v, g, beta)
  B, T, H, V = v.shape
  K = k.shape[-1]
  if initial_state is not None and initial_state.shape != (B, H, K, V):
    raise ValueError(f"initial_state has shape {initial_state.shape}, must be [B,H,K,V]="
                     f"{(B, H, K, V)}; one K x V state per value head.")
  if segment_ids is not None:
    if segment_ids.shape != (B, T) or not jnp.issubdtype(segment_ids.dtype, jnp.integer):
      raise ValueError(f"segment_ids is {segment_ids.dtype}{list(segment_ids.shape)}, must be an "
                       f"integer array [B,T]={[B, T]}; negative ids mark padding.")
  if chunk is not None and (chunk < 1 or chunk & (chunk - 1)):
    raise ValueError(f"chunk={chunk} must be a power of two; the nearest is "
                     f"{1 << max(round(np.log2(max(chunk, 1))), 0)}, or None for the default.")
  if precision not in PRECISIONS:
    raise ValueError(f"precision={precision!r} must be one of {PRECISIONS}.")
  if save_states not in SAVE_STATES:
    raise ValueError(f"save_states={save_states!r} must be one of {SAVE_STATES}.")


def split_heads(q, k, v, g, num_heads, num_key_heads):
  """Views flat [B,T,heads*width] arrays as [B,T,heads,width]; others pass unchanged."""
  if num_heads is None:
    return q, k, v, g
  key_heads = num_heads if num_key_heads is None else num_key_heads

  def split(name, x, heads):
    if x.ndim != 3 or heads < 1 or x.shape[-1] % heads:
      raise ValueError(f"{name} has shape {x.shape}; with num_heads it must be [B,T,heads*width] and "
                       f"its last axis a multiple of heads={heads}.")
    return x.reshape(*x.shape[:2], heads, -1)

  if g is not None and g.ndim == 3 and g.shape[-1] != num_heads:
    g = split("g", g, num_heads)
  return split("q", q, key_heads), split("k", k, key_heads), split("v", v, num_heads), g


def _sequences(q, k, v):
  for name, x in (("q", q), ("k", k), ("v", v)):
    if x.ndim != 4:
      raise ValueError(f"{name} has {x.ndim} axes {x.shape}, must have 4: [B,T,heads,width]; for flat "
                       "[B,T,heads*width] arrays pass num_heads.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f"{name} is {x.dtype}, must be floating point; cast it with .astype(jnp.float32).")
  if not q.dtype == k.dtype == v.dtype:
    raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}, must share one dtype; cast them.")
  if q.shape != k.shape:
    raise ValueError(f"q {q.shape} and k {k.shape} must have the same shape [B,T,G,K].")
  if k.shape[:2] != v.shape[:2]:
    raise ValueError(f"k {k.shape} and v {v.shape} must share batch and tokens [B,T].")
  if 0 in k.shape or 0 in v.shape:
    raise ValueError(f"k {k.shape} and v {v.shape} must have no empty axis; T=0 has no output: skip the call.")
  if v.shape[2] % k.shape[2]:
    raise ValueError(f"{v.shape[2]} value heads must be a multiple of {k.shape[2]} key heads; "
                     "repeat or drop heads.")


def _gates(q, v, g, beta):
  B, T, H = v.shape[:3]
  K = q.shape[-1]
  if g is not None:
    if g.shape not in ((H,), (B, T, H), (B, T, H, K)):
      raise ValueError(f"g has shape {g.shape}, must be [H]={(H,)}, [B,T,H]={(B, T, H)} or "
                       f"[B,T,H,K]={(B, T, H, K)}; H counts value heads.")
    _range("g", g, -np.inf, 0.0, "a log decay: pass -softplus(x) or log(sigmoid(x))")
  if beta is not None:
    if beta.shape != (B, T, H):
      raise ValueError(f"beta has shape {beta.shape}, must be [B,T,H]={(B, T, H)}.")
    _range("beta", beta, 0.0, 2.0, "outside it the state grows: pass sigmoid(x) or 2 sigmoid(x)")


def _range(name, x, low, high, why):
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"{name} is {x.dtype}, must be floating point; cast it with .astype(jnp.float32).")
  if compat.is_concrete(x):
    smallest, largest = float(np.min(x)), float(np.max(x))
    if not low <= smallest <= largest <= high:
      raise ValueError(f"{name} lies in [{smallest:.6g}, {largest:.6g}], must lie in [{low:g}, {high:g}]; "
                       f"{why}.")
