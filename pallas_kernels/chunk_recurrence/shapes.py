"""The (shape, dtype) lists that tests, benches and tables share."""

from typing import NamedTuple

# Dims: B batch, T tokens, H heads, D = K = V width.


class Shape(NamedTuple):
  """One size of a call with as many key heads as value heads and K = V = D."""

  B: int
  T: int
  H: int
  D: int
  dtype: str

  def __str__(self):
    return f"B{self.B} T{self.T} H{self.H} D{self.D} {self.dtype}"


# All flag sets: (decay, delta).
RULES = tuple((decay, delta) for decay in ("none", "scalar", "vector") for delta in (False, True))

# The six shapes of the table of flash-linear-attention, so that figures can be compared.
PEERS = tuple(Shape(*size, "bfloat16") for size in (
    (1, 8192, 96, 128), (2, 16384, 16, 128), (4, 2048, 16, 128),
    (4, 4096, 64, 128), (8, 1024, 8, 64), (8, 2048, 32, 256)))

# The same six, each with about a thousandth of the work, for two CPU cores.
PEERS_CPU = tuple(Shape(*size, "float32") for size in (
    (1, 1024, 4, 64), (1, 2048, 2, 64), (2, 512, 4, 64),
    (2, 512, 8, 64), (4, 256, 4, 32), (2, 512, 2, 128)))

# What the models of this repository train with on a CPU.
LANGUAGE_MODELS = (Shape(16, 256, 4, 32, "float32"), Shape(8, 512, 4, 64, "float32"))

# Time against T at constant width, for the crossover with softmax attention.
CROSSOVER = tuple(Shape(1, T, 16, 128, "bfloat16") for T in (1024, 2048, 4096, 8192, 16384, 32768))
CROSSOVER_CPU = tuple(Shape(1, T, 4, 64, "float32") for T in (256, 512, 1024, 2048, 4096, 8192, 16384))
