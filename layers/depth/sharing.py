"""One set of weights for several layers: tied blocks, each layer with norms of its own and maybe a LoRA.

A stack of L layers has b blocks. Block i serves, with R = L / b,

    cycle:b     layers i, i + b, i + 2 b, ...            middle_cycle:b, middle_sequence:b: the same
    sequence:b  layers i R .. i R + R - 1                for the layers between the first and the last

A layer's matrix is W_l = W_i + B_l A_l with B_l of rank r, the layer's own (r = 0: W_l = W_i); parameters of fewer
than two axes (gains of norms, biases, decays) are each layer's own. At r = min(inputs, outputs) nothing is tied.

`untie` writes the tree of the plain stack from the shared one; the stack runs that, so layers know nothing of
sharing, and the gradient of a shared matrix is the sum over its layers. In the shared tree a matrix keeps its axis
of repeats, of length 1. `tie` is the way back: W_i is the mean (or the first) of its layers, B_l A_l the best
approximation of W_l - W_i, whose squared error is the sum of the singular values left out, squared.

References: Bae et al., "Relaxed Recursive Transformers: Effective Parameter Sharing with Layer-wise LoRA", 2024;
Xue et al., "Go Wider Instead of Deeper" (WideNet: b = 1, a mixture of experts, r = 0), 2021. The choice of W_i that
picks evenly spaced layers ("stepwise") is not here.
"""

import math

import jax.numpy as jnp

# Dims: R layers of one block, I inputs, O outputs, r rank (written K in names).

ORDERS = ("cycle", "sequence", "middle_cycle", "middle_sequence")
DOWN, UP = "_lora_down", "_lora_up"


def stretches(share: str, depth: int) -> list[tuple[int, int, int]]:
  """Returns (first layer, period, repeats) of every stretch of the stack; repeats share their blocks.

  Raises:
    ValueError: no such order, or a number of blocks that does not divide the layers.
  """
  order, _, number = share.partition(":")
  if order not in ORDERS or not number.isdecimal() or int(number) < 1:
    raise ValueError(f"share={share!r} must be one of {', '.join(ORDERS)}, ':' and the number of blocks, "
                     "as in 'cycle:2'.")
  blocks, middle = int(number), order.startswith("middle_")
  layers = depth - 2 * middle
  if layers < 2 * blocks or layers % blocks:
    raise ValueError(f"share={share!r} makes {blocks} blocks serve {max(layers, 0)} of depth={depth} layers; "
                     "they must be a multiple, and at least two for each block.")
  repeats, at = layers // blocks, int(middle)
  if order.endswith("cycle"):
    inner = [(at, blocks, repeats)]
  else:
    inner = [(at + i * repeats, 1, repeats) for i in range(blocks)]
  return [(0, 1, 1), *inner, (depth - 1, 1, 1)] if middle else inner


def _is_matrix(leaf):
  return leaf.ndim > 2  # the first axis counts the layers


def _flat(leaf, module):
  """Returns a kernel as [R, I, O]; maps that write to the stream sum over all axes but the last."""
  inputs = leaf.ndim - 2 if module in ("out", "down") else 1
  return leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:1 + inputs]), -1)


def untie(tree, repeats: int, module: str = ""):
  """Returns the parameters of all layers of a stretch, each with an axis of `repeats`."""
  made = {}
  for name, node in tree.items():
    if hasattr(node, "items"):
      made[name] = untie(node, repeats, name)
    elif not name.endswith((DOWN, UP)):
      leaf = jnp.broadcast_to(node, (repeats, *node.shape[1:]))
      if name + DOWN in tree:
        product_RIO = jnp.einsum("rik,rko->rio", tree[name + DOWN], tree[name + UP])
        leaf += product_RIO.reshape(leaf.shape)
      made[name] = leaf
  return made


def first(tree, rank: int, module: str = ""):
  """Returns the shared parameters that a fresh stack starts with, from the draws of all layers.

  W_i is the draw of the block's first layer. B_l is taken from the layer's own draw, and A_l is 0.
  """
  def factors(flat_RIO):
    R, I, O = flat_RIO.shape
    K = min(rank, I, O)
    return flat_RIO[:, :, :K], jnp.zeros((R, K, O), flat_RIO.dtype)
  return _shared(tree, rank, module, lambda leaf: leaf[:1], factors)


def tie(tree, rank: int, start: str = "average", module: str = ""):
  """Returns the shared parameters nearest to those of trained layers.

  Args:
    tree: parameters of a stretch, each with an axis of layers in front.
    rank: of every B_l A_l; at most that of the matrix is used.
    start: what W_i is: "average" or "lower", the first of its layers.

  Raises:
    ValueError: an unknown `start`.
  """
  if start not in ("average", "lower"):
    raise ValueError(f"start={start!r} is unknown; choose from average, lower.")
  centre = (lambda leaf: jnp.mean(leaf, 0, keepdims=True)) if start == "average" else lambda leaf: leaf[:1]
  def factors(flat_RIO):
    U_RIK, s_RK, V_RKO = jnp.linalg.svd(flat_RIO - centre(flat_RIO), full_matrices=False)
    return U_RIK[..., :rank] * s_RK[:, None, :rank], V_RKO[:, :rank]
  return _shared(tree, rank, module, centre, factors)


def _shared(tree, rank, module, centre, factors):
  made = {}
  for name, node in tree.items():
    if hasattr(node, "items"):
      made[name] = _shared(node, rank, name, centre, factors)
    elif not _is_matrix(node):
      made[name] = node
    else:
      made[name] = centre(node)
      flat_RIO = _flat(node, module)
      if rank:
        made[name + DOWN], made[name + UP] = factors(flat_RIO)
  return made
