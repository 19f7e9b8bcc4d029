"""Regression in context where x and y are tokens of their own, and the two layers written down that solve it.

    tokens    x_1, y_1, x_2, y_2, ..., x_q as (p_t, x or 0, y or 0), t = 0 .. 2 n
    places    p_t = (sin w_f t), (cos w_f t), w_f = 10000^(-2 f / P), f = 0 .. P / 2 - 1
    layer 1   softmax attention of all tokens: token t asks for place t + 1 and adds its y to its own, so that x_i holds
              y_i. The score of place s is c sum_f cos(w_f (s - t - 1)) / sqrt(w_f), `sharpness` or more over all others
    layer 2   linear self-attention: one step of gradient descent, read at -(last coordinate of x_q)

What a y token finds is the 0 of an x, and so does the query, which has nothing behind it: the 1 / sqrt(w_f) make the
nearest place the next best, and that is the query itself. A y token has the key 0 in layer 2.

Reference: von Oswald et al., "Transformers learn in-context by gradient descent", 2023, the section on softmax and
standard tokens. Departure: places stand in front, so that the read-out of layers/regressor.py finds y last.
"""

import jax.numpy as jnp
import numpy as np

from layers.in_context import constructions

# Dims: B batch, T tokens, F numbers of a token without its place, P numbers of a place, f frequencies, K key width.


def _frequencies(width):
  if width < 2 or width % 2:
    raise ValueError(f"places={width} must be even and at least 2: a sine and a cosine for every frequency.")
  return 10_000.0 ** (-np.arange(0, width, 2) / width)


def table(tokens: int, width: int) -> np.ndarray:
  """Returns p_t of places 0 .. tokens - 1, [T, P] in float64.

  Raises:
    ValueError: an odd width.
  """
  angle_Tf = np.arange(tokens)[:, None] * _frequencies(width)[None]
  return np.concatenate([np.sin(angle_Tf), np.cos(angle_Tf)], axis=1)


def placed(x_BTF, width: int):
  """Returns tokens [B, T, P + F]: each behind the place where it stands."""
  B, T, _ = x_BTF.shape
  place_TP = jnp.asarray(table(T, width), x_BTF.dtype)
  return jnp.concatenate([jnp.broadcast_to(place_TP, (B, T, width)), x_BTF], axis=2)


def next_place(tokens: int, width: int, sharpness: float) -> np.ndarray:
  """Returns A [P, P] for which p_t A p_s is largest at s = t + 1, and at s = t where t is the last place.

  Args:
    tokens: T.
    width: P.
    sharpness: least score of the largest over all others, for even t; odd t may find any even place.

  Raises:
    ValueError: so few frequencies that a place far away looks like the next one.
  """
  frequency_f, place_TP = _frequencies(width), table(tokens, width)
  turn = lambda function: np.diag(function(frequency_f) * frequency_f**-0.5)
  step_PP = np.block([[turn(np.cos), -turn(np.sin)], [turn(np.sin), turn(np.cos)]])
  score_TT = (place_TP @ step_PP @ place_TP.T)[::2]
  asked = np.minimum(np.arange(1, tokens + 1, 2), tokens - 1)
  best_T = np.take_along_axis(score_TT, asked[:, None], axis=1)[:, 0]
  np.put_along_axis(score_TT, asked[:, None], -np.inf, axis=1)
  gap = np.min(best_T - score_TT.max(axis=1))
  if gap <= 0.01:
    raise ValueError(f"places={width} numbers cannot tell {tokens} tokens apart; take more.")
  return sharpness / gap * step_PP


def parameters(d: int, n: int, eta: float, *, places: int = 10, key_dim: int = 20, sharpness: float = 40.0) -> dict:
  """Returns the parameters of a Regressor of width P + d + 1 and two layers without norms, read_out "minus_last".

  Layer 1 is Attention of one head, bidirectional and without rope, layer 2 LinearSelfAttention of form "four".

  Args:
    d, n: inputs and pairs.
    eta: rate of the step on (1 / 2n) sum (w.x - y)^2.
    places: P.
    key_dim: K of layer 1.
    sharpness: see `next_place`.

  Raises:
    ValueError: no inputs or pairs, a key narrower than a place, or what `next_place` refuses.
  """
  if d < 1 or n < 1:
    raise ValueError(f"d={d} inputs and n={n} pairs must both be at least 1.")
  if key_dim < places:
    raise ValueError(f"key_dim={key_dim} must be at least places={places}, of which keys are made.")
  D = places + d + 1
  query_DK, key_DK, value_DK, out_KD = np.zeros((D, key_dim)), np.zeros((D, key_dim)), np.zeros((D, key_dim)), (
      np.zeros((key_dim, D)))
  query_DK[:places, :places] = next_place(2 * n + 1, places, sharpness) * key_dim**0.5  # attention divides by it
  key_DK[:places, :places] = np.eye(places)
  value_DK[-1, 0] = out_KD[0, -1] = 1.0
  wide = lambda kernel_DK: {"kernel": np.float32(kernel_DK)[:, None]}
  copy = dict(query=wide(query_DK), key=wide(key_DK), value=wide(value_DK), out={"kernel": np.float32(out_KD)[None]})
  step = constructions.gradient_step(places + d, n, eta)
  on_x = np.diag((np.arange(D) >= places) & (np.arange(D) < D - 1)).astype(float)
  step |= dict(key=on_x, query=on_x)
  return {"stack": {"layers_0_to_0": {"block_0": {"mixer": copy}},
                    "layers_1_to_1": {"block_0": {"mixer": constructions.kernels(step)}}}}
