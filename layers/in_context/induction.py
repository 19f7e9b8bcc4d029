"""An induction head written down: two layers of softmax attention that go on with a sequence they have seen before.

    layer 1   the token at place t asks for place t - 1 and writes its token into a slot of its own: "previous"
    layer 2   the token asks for places whose "previous" is itself, and writes their token into the slot "next"

The stream holds, one-hot, the token, the place, previous and next: D = 3 V + T. Scores are 0 or `sharpness`, so the
answer is exact up to T exp(-sharpness). Nothing precedes place 0; it would read itself, and its key in layer 2 is
lowered by 1 so that nobody reads it. Where a token came before several times, its followers share the answer.

References: Olsson et al., "In-context Learning and Induction Heads", 2022; the copy layer of constructions.py is the
first half of it, and von Oswald et al., 2023, see it arise in training.
"""

import numpy as np

# Dims: V vocabulary, T places, D stream width, K key width, H = 1 head.


def parameters(vocab: int, tokens: int, sharpness: float = 40.0) -> dict:
  """Returns the parameters of an LM of width 3 V + T, of two unnormed layers of attention of one head, without rope.

  Args:
    vocab: V.
    tokens: T, places that have a position vector.
    sharpness: score of what is to be read over all else.

  Raises:
    ValueError: fewer than two tokens or places.
  """
  if vocab < 2 or tokens < 2:
    raise ValueError(f"vocab={vocab} and tokens={tokens} must both be at least 2, or nothing could come again.")
  V, T = vocab, tokens
  D, K = 3 * V + T, max(V, T)
  token, place, previous, following = slice(0, V), slice(V, V + T), slice(V + T, 2 * V + T), slice(2 * V + T, D)
  query, key, value, out = np.zeros((2, D, K)), np.zeros((2, D, K)), np.zeros((2, D, K)), np.zeros((2, K, D))
  strong = sharpness * K**0.5  # attention divides scores by sqrt(K)
  query[0, place, :T] = strong * np.eye(T, k=-1)
  key[0, place, :T] = np.eye(T)
  out[0, :V, previous] = np.eye(V)
  query[1, token, :V] = strong * np.eye(V)
  key[1, previous, :V] = np.eye(V)
  key[1, V, :V] = -1.0
  out[1, :V, following] = np.eye(V)
  value[:, token, :V] = np.eye(V)
  rows = lambda at: np.eye(D)[at].astype(np.float32)
  mixer = {name: {"kernel": np.float32(kernel)[:, :, None]} for name, kernel in (
      ("query", query), ("key", key), ("value", value))}
  mixer["out"] = {"kernel": np.float32(out)[:, None]}
  return {"embedding": {"embedding": rows(token)}, "positions": {"embedding": rows(place)},
          "stack": {"scan_0_to_1": {"block_0": {"mixer": mixer}}}, "head": {"kernel": rows(following).T}}
