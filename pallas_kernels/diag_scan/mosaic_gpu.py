"""The elementwise scan as a Pallas Mosaic GPU kernel, for both directions and so for its own backward.

Grid (B, D / 128): one warpgroup per program, one channel per thread, which carries the value of its
channel in a register along the whole sequence. Tiles of tokens are copied into shared memory one
step ahead of the computation, and out of it behind. Per token and channel it moves 12 bytes, 24 complex, 8
and 16 if the factor never changes, and computes 1 or 4 multiply-adds: copies are all that takes time.

Lowered for cuda on a CPU and run in the GPU interpreter of newer jax; never run on a GPU.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.diag_scan import planes

# Dims: B batch, T tokens, D channels, C tokens of a tile, W channels of a program.

WIDTH = 128  # threads of a warpgroup
TOKENS = 32  # of a tile of real numbers: 16 kB each of a, x and h, twice
GROUP = 8  # tokens whose loads are issued together


def scan(a, x_BTD, h0_BD, reverse, late=False, *, interpret=None):
  """h_BTD; arguments as the reference, all float32 or all complex64.

  Args:
    a, x_BTD, h0_BD, reverse: as in the reference.
    late: as in tpu.scan.
    interpret: parameters of jax's GPU interpreter, to emulate the kernel.
  """
  B, T, D = x_BTD.shape
  count = planes.count(x_BTD.dtype)
  C = TOKENS // count
  missing = -T % C
  # Padding comes after the last processed token, where it cannot be felt.
  before, after = (missing, 0) if reverse else (0, missing)
  wide = lambda y: jnp.pad(y, ((0, 0),) * (y.ndim - 1) + ((0, -D % WIDTH),))
  pad = lambda y: wide(jnp.pad(y, ((0, 0), (before, after), (0, 0))))
  x = planes.split(pad(x_BTD))
  out = jax.ShapeDtypeStruct(x[0].shape, jnp.float32)
  moving = count * a.ndim // 3 + count  # planes
  emulated = {} if interpret is None else dict(interpret=interpret)
  h_planes = plgpu.kernel(
      functools.partial(_kernel, count, C, reverse, late), out_type=(out,) * count,
      grid=(B, x[0].shape[2] // WIDTH), grid_names=("batch", "column"),
      scratch_types=(plgpu.SMEM((2, moving, C, WIDTH), jnp.float32), plgpu.SMEM((2, count, C, WIDTH), jnp.float32),
                     plgpu.Barrier(num_arrivals=moving, num_barriers=2)),
      # Layouts are stated, not inferred, as in the other kernels for Hopper.
      compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane), **emulated)(
          *planes.split(wide(a) if a.ndim == 1 else pad(a)), *x, *planes.split(wide(h0_BD)))
  return planes.join(h_planes)[:, before:before + T, :D]


def _kernel(count, C, reverse, late, *refs):
  *refs, tiles2, out2, arrived = refs
  a_refs, x_refs, h0_refs, h_refs = (refs[i * count:(i + 1) * count] for i in range(4))
  b, channels = lax.axis_index("batch"), pl.ds(lax.axis_index("column") * WIDTH, WIDTH)
  N = x_refs[0].shape[1] // C
  constant = tuple(a[channels] for a in a_refs) if len(a_refs[0].shape) == 1 else None
  moving = x_refs if constant else (*a_refs, *x_refs)
  rows = lambda n: pl.ds((N - 1 - n if reverse else n) * C, C)

  def fetch(n, slot):
    for i, source in enumerate(moving):
      plgpu.copy_gmem_to_smem(source.at[b, rows(n), channels], tiles2.at[slot, i], arrived.at[slot])

  def tile(n, carry):
    slot = lax.rem(n, jnp.int32(2))

    @pl.when(n + 1 < N)
    def _():
      # The commit that ended the tile before was a barrier: no thread still reads the slot.
      fetch(n + 1, 1 - slot)

    plgpu.barrier_wait(arrived.at[slot])
    plgpu.wait_smem_to_gmem(count, wait_read_only=True)
    carry = _tokens(constant, tiles2.at[slot], out2.at[slot], carry, reverse)
    plgpu.commit_smem()
    for i, target in enumerate(h_refs):
      plgpu.copy_smem_to_gmem(out2.at[slot, i], target.at[b, rows(n), channels])
    return carry

  fetch(jnp.int32(0), jnp.int32(0))
  h0 = tuple(h0[b, channels] for h0 in h0_refs)
  # A late factor waits for the next token; what waits for the first is multiplied with h0 = 0.
  lax.fori_loop(0, N, tile, (h0, h0) if late and not constant else (h0,))
  plgpu.wait_smem_to_gmem(0)


def _tokens(constant, tiles, out, carry, reverse):
  """Takes (h,), or (h, factor that waits), over the tokens of a tile of planes of a, unless constant, and x."""
  count, C = out.shape[:2]

  def group(g, carry):
    h, *waiting = carry
    order = [g * GROUP + u for u in range(GROUP)]
    order = [C - 1 - row for row in order] if reverse else order
    # All loads before the chain of multiply-adds: the compiler moves none of them over a store.
    loaded = [tuple(tiles[i, row] for i in range(tiles.shape[0])) for row in order]
    for row, numbers in zip(order, loaded):
      a = constant or numbers[:count]
      if waiting:
        a, waiting = waiting[0], [a]
      h = planes.add(planes.multiply(a, h), numbers[-count:])
      for i in range(count):
        out[i, row] = h[i]
    return (h, *waiting)

  return lax.fori_loop(0, C // GROUP, group, carry)
