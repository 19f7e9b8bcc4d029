"""Where the norms of a residual block sit: one table, one row per published scheme.

Every sublayer f (mixer or channel mixer) of layer l = 0..L-1 computes

    h = N_pre(x) if pre[l] else x
    y = f(in_scale[l] * h)
    y = N_out(y) if out[l] else y
    x = alpha[l] * x + y
    x = N_post(x) if post[l] else x

and two flags of the whole model add a norm on the embeddings and one before the
head. Norm layers know nothing of this, so any norm goes into any row.

References: Xiong et al., "On Layer Normalization in the Transformer
Architecture", 2020 (pre, post); Ding et al., "CogView", 2021 (sandwich); Kim et
al., "Peri-LN", 2025; Team OLMo, "2 OLMo 2 Furious", 2025 (output_only); Li et
al., "Mix-LN", 2024; Sun et al., "The Curse of Depth in Large Language Models",
2025 (layernorm_scaling, index from 1); Wang et al., "DeepNet", 2022 (deepnorm,
decoder-only constants).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Placement:
  """One row of the table, written out per layer.

  Attributes:
    pre, out, post: whether layer l has that norm.
    in_scale: factor on what the sublayer reads, after the pre norm.
    alpha: factor on the residual stream before the sublayer's output is added.
    embed_norm, final_norm: norms of the whole model.
    branch_gain: factor on the initial value, output and channel kernels.
  """

  pre: tuple[bool, ...]
  out: tuple[bool, ...]
  post: tuple[bool, ...]
  in_scale: tuple[float, ...]
  alpha: tuple[float, ...]
  embed_norm: bool = False
  final_norm: bool = True
  branch_gain: float = 1.0


def _row(depth, *, pre=False, out=False, post=False, in_scale=1.0, alpha=1.0, **flags):
  """Repeats what a row gives once for every layer; tuples are per layer already."""
  per_layer = dict(pre=pre, out=out, post=post, in_scale=in_scale, alpha=alpha)
  per_layer = {k: v if isinstance(v, tuple) else (v,) * depth for k, v in per_layer.items()}
  return Placement(**per_layer, **flags)


def _mix(depth, post_layers):
  post = tuple(layer < post_layers for layer in range(depth))
  return _row(depth, pre=tuple(not p for p in post), post=post)


TABLE = {
    "pre": lambda L: _row(L, pre=True),
    "post": lambda L: _row(L, post=True, final_norm=False),
    "sandwich": lambda L: _row(L, pre=True, out=True),
    "peri": lambda L: _row(L, pre=True, out=True, embed_norm=True),
    "output_only": lambda L: _row(L, out=True),
    "mix": lambda L: _mix(L, L // 4),
    "layernorm_scaling": lambda L: _row(
        L, pre=True, in_scale=tuple((layer + 1) ** -0.5 for layer in range(L))),
    "deepnorm": lambda L: _row(
        L, post=True, alpha=(2 * L) ** 0.25, final_norm=False, branch_gain=(8 * L) ** -0.25),
    # For layers that are an algorithm on their tokens, and models whose theory has no norms.
    "none": lambda L: _row(L, final_norm=False),
}


def placement(name: str, depth: int) -> Placement:
  """Returns row `name` for `depth` layers; "mix:3" puts 3 layers in Post-LN instead of L // 4.

  Raises:
    ValueError: unknown row, depth below 1, or a Post-LN count outside 0..depth.
  """
  if depth < 1:
    raise ValueError(f"depth={depth} must be at least 1 layer.")
  row, colon, post_layers = name.partition(":")
  if row not in TABLE or (colon and row != "mix"):
    raise ValueError(f"placement={name[:80]!r} is not a row of the table; choose from "
                     f"{', '.join(TABLE)} or mix:N.")
  if not colon:
    return TABLE[row](depth)
  if not post_layers.isdecimal() or int(post_layers) > depth:
    raise ValueError(f"placement={name!r}: the number of Post-LN layers must be a whole "
                     f"number from 0 to depth={depth}.")
  return _mix(depth, int(post_layers))
