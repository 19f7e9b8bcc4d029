"""What layers that are applied again and again have in common: which do so, and how their result joins x.

    out_t = x_t + p_t y_t              combine = "authors": y has x in it, so this adds x twice
    out_t = x_t + p_t (y_t - x_t)      combine = "residual": p = 1 is y, p = 0 is x
"""

COMBINE = ("authors", "residual")


def check(recursions: int, combine: str) -> None:
  """Refuses fields that no recursion has.

  Raises:
    ValueError: recursions below 1, or a combination that does not exist.
  """
  if recursions < 1:
    raise ValueError(f"recursions={recursions} must be at least 1.")
  if combine not in COMBINE:
    raise ValueError(f"combine={combine!r} is unknown; choose from {', '.join(COMBINE)}.")


def repeated(layer: int, depth: int, ends: int) -> bool:
  """Returns whether a layer is repeated; `ends` layers at each end of the stack are applied once, to all tokens."""
  return ends <= layer < depth - ends


def combined(x_BTD, y_BTD, p_BT, combine: str):
  """Returns x with y added to it; see the equations."""
  added_BTD = y_BTD if combine == "authors" else y_BTD - x_BTD
  return x_BTD + p_BT[..., None].astype(x_BTD.dtype) * added_BTD
