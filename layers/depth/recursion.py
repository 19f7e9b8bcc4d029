"""What layers that are applied again and again have in common: which do so, and how their result joins x.

    out_t = x_t + p_t y_t              combine = "authors": y has x in it, so this adds x twice
    out_t = x_t + p_t (y_t - x_t)      combine = "residual": p = 1 is y, p = 0 is x

and what a later one reads: keys and values that it makes itself of the tokens it is given (keys = "own"), or those
that the first made of all tokens (keys = "shared"), at their places in the whole row and also of tokens that have
stopped; a later recursion then makes queries only.
"""

COMBINE = ("authors", "residual")
KEYS = ("own", "shared")


def check(recursions: int, combine: str, keys: str) -> None:
  """Refuses fields that no recursion has.

  Raises:
    ValueError: recursions below 1, or a combination or a source of keys that does not exist.
  """
  if recursions < 1:
    raise ValueError(f"recursions={recursions} must be at least 1.")
  if combine not in COMBINE:
    raise ValueError(f"combine={combine!r} is unknown; choose from {', '.join(COMBINE)}.")
  if keys not in KEYS:
    raise ValueError(f"keys={keys!r} is unknown; choose from {', '.join(KEYS)}.")


def check_mixer(keys: str, mixer) -> None:
  """Refuses to share the keys of a mixer that does not hand them out (layers/token_cache.py).

  Raises:
    ValueError: it does not.
  """
  if keys == "shared" and not getattr(mixer, "shares_sources", False):
    raise ValueError(f"keys='shared': {type(mixer).__name__} hands out no keys and values for later recursions; take "
                     "the mixer attention.Attention, or keys='own'.")


def repeated(layer: int, depth: int, ends: int) -> bool:
  """Returns whether a layer is repeated; `ends` layers at each end of the stack are applied once, to all tokens."""
  return ends <= layer < depth - ends


def combined(x_BTD, y_BTD, p_BT, combine: str):
  """Returns x with y added to it; see the equations."""
  added_BTD = y_BTD if combine == "authors" else y_BTD - x_BTD
  return x_BTD + p_BT[..., None].astype(x_BTD.dtype) * added_BTD
