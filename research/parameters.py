"""What the axes of a parameter mean, told by the name of the module that owns it.

Layers keep to a small vocabulary of module names (query, key, value, out, up,
gate, down, head, embedding), so that sharding, initialisation and optimizers
can treat a parameter by its role without an annotation in any layer. A name
outside the vocabulary is a plain map "in -> out".
"""

from typing import NamedTuple

import jax

# (module name, number of axes without the axis of layers) -> inputs -> outputs; before a colon, what there is one map for.
AXES = {
    ("embedding", 2): "vocab -> embed",
    ("positions", 2): "positions -> embed",
    ("head", 2): "embed -> vocab",
    ("query", 3): "embed -> heads channels",
    ("key", 3): "embed -> heads channels",
    ("value", 3): "embed -> heads channels",
    ("gate", 3): "embed -> heads channels",
    ("out", 3): "heads channels -> embed",
    ("decay", 2): "embed -> heads",
    ("beta", 2): "embed -> heads",
    ("up", 2): "embed -> hidden",
    ("gate", 2): "embed -> hidden",
    ("down", 2): "hidden -> embed",
    ("experts_gate", 3): "experts: embed -> hidden",
    ("experts_up", 3): "experts: embed -> hidden",
    ("experts_down", 3): "experts: hidden -> embed",
    ("experts_query", 3): "experts: embed -> heads",
    ("experts_out", 3): "experts: heads -> embed",
}
PLAIN = {0: "->", 1: "-> out", 2: "in -> out", 3: "in -> out out2", 4: "in -> out out2 out3"}


class Role(NamedTuple):
  """What a parameter does.

  Attributes:
    module: name of the module that owns it.
    leaf: its own name, "kernel", "scale", ...
    lead: names of the first axes, which count maps: the layers of a scan, experts.
    inputs, outputs: names of the other axes; a kernel sums over its inputs.
  """

  module: str
  leaf: str
  lead: tuple[str, ...]
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]

  @property
  def axes(self) -> tuple[str, ...]:
    return self.lead + self.inputs + self.outputs

  @property
  def is_matrix(self) -> bool:
    """Whether it is a linear map: what is decayed, orthogonalised, given a gain."""
    return self.leaf in ("kernel", "embedding") and bool(self.inputs)

  def fan_in(self, shape) -> int:
    """Returns the number of inputs that one output sums over."""
    sizes = dict(zip(self.axes, shape))
    fan = 1
    for axis in self.inputs:
      fan *= sizes[axis]
    return fan


def role(path, leaf) -> Role:
  """Returns the role of the parameter at a key path of the tree."""
  names = [entry.key for entry in path]
  module, name = (names[-2] if len(names) > 1 else ""), names[-1]
  stacked = any(n.startswith("scan_") for n in names)
  ndim = len(leaf.shape) - stacked
  matrix = name in ("kernel", "embedding")
  words = AXES.get((module, ndim), PLAIN.get(ndim)) if matrix else None
  each, _, words = (words or "->").rpartition(":")
  inputs, _, outputs = words.partition("->")
  if words == "->":
    outputs = " ".join(f"{name}{i}" for i in range(ndim))
  lead = ("layers",) * stacked + tuple(each.split())
  return Role(module, name, lead, tuple(inputs.split()), tuple(outputs.split()))


def roles(params):
  """Returns the tree of roles of a tree of parameters (or of their shapes)."""
  return jax.tree_util.tree_map_with_path(role, params)
