"""Makes the parameters of a deep or wide residual stack from those of a trained small one.

With n layers p_0 .. p_{n-1} grown to L = g n layers q_0 .. q_{L-1}:

    stack        q_i = p_{i mod n}                         G_stack, the depthwise G_direct
    interpolate  q_i = p_{i // g}                          its alternative: every layer g times in a row
    zero         q_i = p_{i mod n}, and for i >= n the maps that write to the stream are 0
                                                           G_zero: the function stays as it was
    random       q_i = p_i for i < n, else freshly drawn   G_random
    learn        q_i = sum_j M[i, j] p_j, one M per kind of parameter, to be trained
                                                           G_learn, the depth part of LiGO

and in width, every unit repeated g times (the widthwise G_direct; a normalised stream stays normalised):

    wide         W' = tile(W) / (multiplicity of the inputs that W sums over)

All are functions of the collection of layers/stack.py, scanned or not, and know no layer but by the names of the
maps that write to the stream: `out` and `down`. The reference keeps neither optimizer state nor step: those start
anew. Its random layers are faded in by a mask; ours are there at once.

References: Du et al., "Stacking Your Transformers: A Closer Look at Model Growth for Efficient LLM Pre-Training",
2024; Wang et al., "Learning to Grow Pretrained Models" (LiGO), 2023; Chen et al., "Net2Net", 2016 (wide).
"""

import jax
import jax.numpy as jnp

from layers.depth import sharing

# Dims: n layers of the small stack, L of the grown one.

DEEP = ("stack", "interpolate", "zero", "random", "learn")
OPERATORS = (*DEEP, "wide")
WRITERS = ("out", "down")


def layers_of(tree, runs) -> list:
  """Returns the subtree of every layer, layer 0 first, of a collection of a stack cut into `runs`."""
  layers = []
  for run in runs:
    blocks = tree[run.name]
    for repeat in range(run.repeats):
      pick = (lambda leaf, i=repeat: leaf[i]) if run.repeats > 1 else (lambda leaf: leaf)
      layers += [jax.tree.map(pick, blocks.get(f"block_{i}", {})) for i in range(run.period)]
  return layers


def stack_of(layers: list, runs) -> dict:
  """Returns the collection of which `layers_of` would give `layers`.

  Raises:
    ValueError: layers that one scan should hold have different parameters.
  """
  tree = {}
  for run in runs:
    of_run = layers[run.first:run.first + run.period * run.repeats]
    node = {}
    for i in range(run.period):
      same = of_run[i::run.period]
      if any(_form(layer) != _form(same[0]) for layer in same):
        raise ValueError(f"layers {run.first + i}, {run.first + i + run.period}, ... share a scan and have different "
                         "parameters; grow a stack whose pattern of layers divides its depth.")
      if same[0]:
        node[f"block_{i}"] = jax.tree.map(lambda *x: jnp.stack(x), *same) if run.repeats > 1 else same[0]
    tree[run.name] = node
  return tree


def _form(tree):
  return jax.tree.map(lambda leaf: leaf.shape, tree)


def deepen(layers: list, depth: int, operator: str, *, fresh: list | None = None, mix=None) -> list:
  """Returns the layers of the grown stack.

  Args:
    layers: of the small stack.
    depth: L, a multiple of their number n.
    operator: one of DEEP.
    fresh: for "random", L freshly drawn layers.
    mix: for "learn", the tree of [L, n] that `first_mix` gives, trained or not.

  Raises:
    ValueError: L is no multiple of n, an unknown operator, or layers that cannot be made to write nothing.
  """
  n = len(layers)
  if depth < n or depth % n:
    raise ValueError(f"depth={depth} must be a multiple of the {n} layers it grows from; "
                     f"take {n * max(1, round(depth / n))}.")
  if operator == "stack":
    return [layers[i % n] for i in range(depth)]
  if operator == "interpolate":
    return [layers[i // (depth // n)] for i in range(depth)]
  if operator == "zero":
    return [layers[i % n] if i < n else silent(layers[i % n]) for i in range(depth)]
  if operator == "random":
    return [*layers, *fresh[n:]]
  if operator == "learn":
    return mixed(layers, mix)
  raise ValueError(f"operator={operator!r} is unknown; choose from {', '.join(DEEP)}.")


def silent(layer):
  """Returns the layer with sublayers that add exactly 0 to the stream.

  The norm on a sublayer's output is zeroed where there is one, else the maps that write: never both,
  which would leave both without a gradient.
  """
  made = dict(layer)
  for sublayer in (name for name in ("mixer", "channel") if name in layer):
    norm = f"{sublayer}_out_norm"
    if norm in layer:
      made[norm] = jax.tree.map(jnp.zeros_like, layer[norm])
    else:
      made[sublayer], found = _without_writers(layer[sublayer])
      if not found:
        raise ValueError(f"operator='zero': the {sublayer} has no map called {' or '.join(WRITERS)} that could be "
                         "set to 0; take operator='stack'.")
  return made


def _without_writers(tree):
  """Returns (tree with every map of WRITERS zero, whether there was one)."""
  if not hasattr(tree, "items"):
    return tree, False
  made, found = {}, False
  for name, node in tree.items():
    if name in WRITERS:
      made[name], found = jax.tree.map(jnp.zeros_like, node), True
    else:
      made[name], inside = _without_writers(node)
      found |= inside
  return made, found


def first_mix(layers: list, depth: int):
  """Returns the mix of "learn" that is "stack": a tree like a layer's of [L, n] with one 1 in each row."""
  one_Ln = jax.nn.one_hot(jnp.arange(depth) % len(layers), len(layers))
  return jax.tree.map(lambda _: one_Ln, layers[0])


def mixed(layers: list, mix) -> list:
  """Returns L layers, each parameter a sum of that parameter over the old layers."""
  grown = jax.tree.map(lambda mix_Ln, *old: jnp.tensordot(mix_Ln, jnp.stack(old), 1), mix, *layers)
  depth = jax.tree.leaves(mix)[0].shape[0]
  return [jax.tree.map(lambda leaf: leaf[i], grown) for i in range(depth)]


def widen(leaf, shape: tuple[int, ...], inputs: tuple[int, ...]):
  """Returns a parameter tiled to `shape`, divided by how often each of its inputs now comes.

  Args:
    leaf: of the small model.
    shape: of the same parameter of the wide one.
    inputs: axes that the parameter's map sums over.

  Raises:
    ValueError: an axis that does not grow by a whole factor.
  """
  if len(leaf.shape) != len(shape) or any(new % old for old, new in zip(leaf.shape, shape)):
    raise ValueError(f"shape={shape} must be a multiple, axis by axis, of the shape {leaf.shape} it grows from.")
  factors = [new // old for old, new in zip(leaf.shape, shape)]
  times = 1
  for axis in inputs:
    times *= factors[axis]
  return jnp.tile(leaf, factors) / times


def tied(layers: list, runs, rank: int, start: str = "average") -> dict:
  """Returns the collection of a stack that shares matrices within its `runs`, nearest to untied layers."""
  full = stack_of(layers, runs)
  return {run.name: sharing.tie(full[run.name], rank, start) if run.repeats > 1 else full[run.name] for run in runs}
