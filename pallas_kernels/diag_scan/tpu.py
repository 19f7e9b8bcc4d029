"""The elementwise scan as one Mosaic TPU kernel, for both directions and so for its own backward.

The grid is (B, channel tiles, token blocks): sequences and channels in parallel, blocks in order, with the
value of the last token in float32 scratch. A block is taken eight tokens at a time, the rows of one vector
register, by three doublings (s = 1, 2, 4) and one step from the carried value:

    x_t += a_t x_{t-s},   a_t *= a_{t-s},   then   h_t = x_t + a_t h_carried

so products of up to eight factors are formed, which must not overflow. A factor that never changes is
doubled once per block. Reversed order renames blocks and rows; nothing is flipped. Bundles per register of
8 x 128 numbers on v5e (bundles.csv), against the cycles its bytes take at 819 GB/s and 1.5 GHz: real 9 of
23, constant factor 6 of 15, complex 29 of 45, constant 19 of 30, in the backward 1 to 2 more; by that
count it waits for memory.

Compiled ahead of time for v5e, v5p and v6e; never run on a TPU. The numbers are checked in interpret mode.
"""

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from pallas_kernels.diag_scan import planes

# Dims: B batch, T tokens, D channels, C tokens of a block, L channels of a block, R rows of a register.

ROWS = 8
LANES = 512  # float32 channels of a block, over the planes: rows of four registers hide latencies
TOKENS = 512  # of a block at most: with both buffers 6.3 MB of VMEM for a, x and h
UNROLLED = 2  # registers' worth of tokens per step of the loop


def why_not(shape, dtype, platform) -> str | None:
  """Reason why this backend cannot run here, or None."""
  del shape
  if platform != "tpu":
    return "it needs a TPU; backend='interpret' runs the same kernel here, slowly"
  return planes.refuse(dtype)


def scan(a, x_BTD, h0_BD, reverse, late=False, interpret: bool = False):
  """h_BTD; arguments as the reference, all float32 or all complex64.

  Args:
    a, x_BTD, h0_BD, reverse: as in the reference.
    late: whether the factor of a token multiplies what leaves it, not what enters it, as the transposed
      scan has it: h_t = a_{t-1} h_{t-1} + x_t in the order of processing, with h0 = 0.
    interpret: whether to emulate the kernel on any device.
  """
  T = x_BTD.shape[1]
  C = block_tokens(T)
  missing = -T % C
  # Padding comes after the last processed token, where it cannot be felt.
  before, after = (missing, 0) if reverse else (0, missing)
  pad = lambda y: jnp.pad(y, ((0, 0), (before, after), (0, 0))) if missing else y
  a = a[None, :] if a.ndim == 1 else pad(a)
  h_planes = _call(*map(planes.split, (a, pad(x_BTD), h0_BD[:, None, :])), C, reverse, late, interpret)
  return planes.join(h_planes)[:, before:before + T]


def block_tokens(T: int) -> int:
  """Tokens of a block: the fewest whole steps of the loop that make the fewest blocks."""
  step = UNROLLED * ROWS
  return pl.cdiv(pl.cdiv(T, pl.cdiv(T, TOKENS)), step) * step


def _call(a, x, h0, C, reverse, late, interpret):
  """Planes of h from planes of a ([B,N C,D] or [1,D]), x and h0 ([B,1,D])."""
  B, T, D = x[0].shape
  count, N = len(x), T // C
  # The last block may reach beyond D: channels do not mix, and what lies outside is never stored.
  L = min(D, LANES // count)
  turn = (lambda n: N - 1 - n) if reverse else (lambda n: n)
  tokens = pl.BlockSpec((1, C, L), lambda b, j, n: (b, turn(n), j))
  once = pl.BlockSpec((1, 1, L), lambda b, j, n: (b, 0, j))
  factor = tokens if a[0].ndim == 3 else pl.BlockSpec((1, L), lambda b, j, n: (0, j))
  out = jax.ShapeDtypeStruct((B, T, D), jnp.float32, manual_axis_type=jax.typeof(x[0]).manual_axis_type)

  def body(*refs):
    _kernel(*(refs[i * count:(i + 1) * count] for i in range(6)), reverse, late)

  return pl.pallas_call(
      body, grid=(B, pl.cdiv(D, L), N), out_shape=[out] * count,
      in_specs=[factor] * count + [tokens] * count + [once] * count, out_specs=[tokens] * count,
      scratch_shapes=[pltpu.VMEM((ROWS, L), jnp.float32)] * (2 * count),
      compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
      interpret=interpret, name=f"diag_scan_{'backward' if late else 'forward'}")(*a, *x, *h0)


def _kernel(a_refs, x_refs, h0_refs, h_refs, h_carry_refs, a_carry_refs, reverse, late):
  shape = h_carry_refs[0].shape
  tiles = x_refs[0].shape[1] // ROWS
  last = 0 if reverse else ROWS - 1
  spread_last = lambda x: tuple(jnp.broadcast_to(x_RL[last:last + 1], shape) for x_RL in x)
  constant = None
  if len(a_refs[0].shape) == 2:
    constant, late = _double(tuple(jnp.broadcast_to(a[...], shape) for a in a_refs), reverse), False
  carry_refs = (h_carry_refs, a_carry_refs) if late else (h_carry_refs,)

  @pl.when(pl.program_id(2) == 0)
  def _():
    for h_carry, a_carry, h0 in zip(h_carry_refs, a_carry_refs, h0_refs):
      h_carry[...] = jnp.broadcast_to(h0[0], shape)
      a_carry[...] = jnp.zeros(shape, jnp.float32)

  def tile(i, carry):
    rows = pl.ds((tiles - 1 - i if reverse else i) * ROWS, ROWS)
    a = None if constant else tuple(a[0, rows, :] for a in a_refs)
    leaving = (spread_last(a),) if late else ()
    if late:
      a = tuple(_earlier(a_RL, 1, carried_RL, reverse) for a_RL, carried_RL in zip(a, carry[1]))
    levels, product = constant or _double(a, reverse)
    h = tuple(x[0, rows, :] for x in x_refs)
    for s, a in levels:
      h = planes.add(h, planes.multiply(a, tuple(_earlier(x_RL, s, 0.0, reverse) for x_RL in h)))
    h = planes.add(h, planes.multiply(product, carry[0]))
    for ref, h_RL in zip(h_refs, h):
      ref[0, rows, :] = h_RL
    return (spread_last(h), *leaving)

  def step(i, carry):
    for u in range(UNROLLED):
      carry = tile(i * UNROLLED + u, carry)
    return carry

  carry = lax.fori_loop(0, tiles // UNROLLED, step, tuple(tuple(r[...] for r in refs) for refs in carry_refs))
  for refs, x in zip(carry_refs, carry):
    for ref, x_RL in zip(refs, x):
      ref[...] = x_RL


def _double(a, reverse):
  """([(s, product of the factors of a row and the s - 1 before it)], product of all up to a row)."""
  levels = []
  for s in (1, 2, 4):
    levels.append((s, a))
    fills = (1.0, 0.0)
    a = planes.multiply(a, tuple(_earlier(a_RL, s, fill, reverse) for a_RL, fill in zip(a, fills)))
  return levels, a


def _earlier(x_RL, s, fill, reverse):
  """Each row's value s processed rows ago, `fill` where there is none."""
  row_RL = lax.broadcasted_iota(jnp.int32, x_RL.shape, 0)
  # A select, not a product with 0: a NaN must not reach rows before its own.
  if reverse:
    return jnp.where(row_RL < ROWS - s, pltpu.roll(x_RL, ROWS - s, 0), fill)
  return jnp.where(row_RL >= s, pltpu.roll(x_RL, s, 0), fill)
