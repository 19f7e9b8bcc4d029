"""What layers show of themselves to whoever looks: values sown into the collection "depth".

A forward pass in which "depth" is not mutable (training, evaluation, init) traces
nothing of this. The stack shows "stream_BTD" before its first layer, every block
its own after it; attention shows "attention_entropy_BT". research/diagnostics.py
is who looks.
"""

from collections.abc import Callable

import flax.linen as nn

DEPTH = "depth"


def show(module: nn.Module, name: str, make: Callable) -> None:
  """Sows the array that `make` returns under `name`, if somebody looks."""
  if module.is_mutable_collection(DEPTH) and not module.is_initializing():
    module.sow(DEPTH, name, make())
