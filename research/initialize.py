"""How parameters start: an explicit part of the experiment, by role instead of by layer.

`config.init` redraws or rescales what the layers drew themselves:

    kernel = "layer"    each layer's own initialisation (the default)
             "normal"   every kernel N(0, std^2)
             "xavier"   every kernel N(0, 2 / (fan_in + fan_out))
    residual = "plain"  nothing more
               "scaled" maps that write to the residual stream (out, down) over sqrt(2 L)

A placement with a branch gain (DeepNorm) multiplies value, out, up, gate and down.
Draws depend on the parameter's path alone, so arms that share a shape share it.

References: Glorot and Bengio, 2010; Radford et al., GPT-2, 2019 (scaled);
Wang et al., "DeepNet", 2022 (gain).
"""

import math
import zlib

import jax

from research import parameters
from research.errors import ConfigError, nearest, shown

KERNELS = ("layer", "normal", "xavier")
RESIDUAL = ("plain", "scaled")
WRITERS = ("out", "down", "experts_out", "experts_down")
BRANCH = ("value", "out", "up", "gate", "down", "experts_out", "experts_up", "experts_gate", "experts_down")


def check(init) -> None:
  """Refuses an unknown scheme or a deviation of 0 in `config.init`."""
  key = "config.init"
  for field, known in (("kernel", KERNELS), ("residual", RESIDUAL)):
    if init[field] not in known:
      raise ConfigError(f"{key}.{field}={shown(init[field])} is unknown; "
                        f"{nearest(str(init[field]), known)}")
  if init.std <= 0:
    raise ConfigError(f"{key}.std={init.std} must be above 0.")


def initialize(params, init, placement, key):
  """Returns the parameters as `init` and the placement want them to start."""
  depth = len(placement.pre)

  def start(path, leaf):
    role = parameters.role(path, leaf)
    in_stack = any(entry.key == "stack" for entry in path)
    if role.leaf != "kernel" or not in_stack:
      return leaf
    scheme = init.kernel
    if scheme != "layer":
      fan_in, size = role.fan_in(leaf.shape), math.prod(leaf.shape[len(role.lead):])
      std = init.std
      if scheme == "xavier":
        std = math.sqrt(2 / (fan_in + size // fan_in))
      name = jax.tree_util.keystr(path)
      draw = jax.random.normal(jax.random.fold_in(key, zlib.crc32(name.encode())), leaf.shape)
      leaf = (std * draw).astype(leaf.dtype)
    gain = placement.branch_gain if role.module in BRANCH else 1.0
    if init.residual == "scaled" and role.module in WRITERS:
      gain /= math.sqrt(2 * depth)
    return leaf if gain == 1.0 else leaf * gain

  return jax.tree_util.tree_map_with_path(start, params)
