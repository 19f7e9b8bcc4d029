"""What the Hopper kernels share: tiles in shared memory, products of them, and the walk over chunks.

One program is one warpgroup. A TMA copy brings the next chunk into the other of two slots of shared memory
while this one is computed; every product is a wgmma on bfloat16 tiles with a float32 accumulator, and the
state stays in registers as a tuple of 64 x 64 blocks.
"""

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence.plan import Plan

# Dims: C rows of a chunk, K key width, V value width, N chunks.

C = 64  # tokens per chunk: rows of one wgmma
TILE = 64  # value channels per program
ROWS, COLUMNS = 0, 1  # axis of a tile that a vector runs along
TILED = plgpu.Layout.WGMMA
# Layouts are stated, not inferred: inference of jax 0.12 finds none for these kernels.
PARAMS = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane)


def why_not(plan: Plan) -> str | None:
  """Reason why these kernels do not compute `plan`, on whatever device, or None."""
  if plan.dtype != "bfloat16" or plan.precision != "mixed":
    return f"wgmma is fed with bfloat16 here, not {plan.dtype} at precision {plan.precision!r}"
  if plan.chunk % C or plan.K not in (64, 128) or plan.V % TILE:
    return (f"chunk={plan.chunk}, K={plan.K}, V={plan.V} must be K=64 or 128 and multiples of {C} "
            "to fill wgmma tiles within shared memory")
  if plan.chunk > C and plan.forward != plan.backward:
    return f"states are kept every {C} tokens, not every {plan.chunk}, which only its own backward understands"
  return None


def tile(rows, columns, dtype=jnp.bfloat16):
  """Shared memory in the order that wgmma and TMA want."""
  return plgpu.SMEM((rows, columns), dtype, transforms=_order(dtype))


def slots(rows, columns, dtype=jnp.bfloat16):
  """Two such tiles."""
  return plgpu.SMEM((2, rows, columns), dtype, transforms=_order(dtype))


def stream(N, fetch, arrived, chunk, carry, *, reverse):
  """Folds `chunk(n, slot, carry)` over all chunks, fetching each one step ahead into the other slot."""
  nth = lambda i: N - 1 - i if reverse else i
  fetch(jnp.int32(nth(0)), jnp.int32(0))

  def step(i, carry):
    slot = lax.rem(i, jnp.int32(2))

    @pl.when(i + 1 < N)
    def _():
      # No warp may still read the slot that is overwritten.
      plgpu.commit_smem()
      fetch(nth(i + 1), 1 - slot)

    plgpu.barrier_wait(arrived.at[slot])
    return chunk(nth(i), slot, carry)

  return lax.fori_loop(0, N, step, carry)


def blocks(K):
  """The state is a tuple of blocks of 64 key channels: a wgmma has 64 rows, and staging stays small."""
  return tuple(pl.ds(start, C) for start in range(0, K, C))


def start(source, columns, staging, barrier):
  """A K x 64 state from global memory in registers."""
  state = []
  for block in blocks(source.shape[0]):
    plgpu.copy_gmem_to_smem(source.at[block, columns], staging, barrier)
    plgpu.barrier_wait(barrier)
    state.append(read(staging))
    plgpu.commit_smem()
  return tuple(state)


def finish(state, staging, target, columns):
  """Sends a K x 64 state to global memory."""
  for block, S_CV in zip(blocks(target.shape[0]), state):
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    staging[...] = S_CV
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(staging, target.at[block, columns])
  plgpu.wait_smem_to_gmem(0)


def write(state, target):
  """Rounds a state into shared memory."""
  for block, S_CV in zip(blocks(target.shape[0]), state):
    target[block, :] = S_CV.astype(target.dtype)


def read(ref):
  """A tile in float32 registers, in the layout of an accumulator."""
  return plgpu.layout_cast(ref[...], TILED).astype(jnp.float32)


def multiply(a, b):
  """a @ b for tiles in shared memory, awaited, in float32 registers."""
  def accumulate(sum_ref):
    plgpu.wgmma(sum_ref, a, b)
    return sum_ref[...]

  # The interpreter takes operands of wgmma in shared memory only, not in registers.
  return pl.run_scoped(accumulate, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def vector(ref, axis):
  """C floats of shared memory in registers, to be spread along an axis of a tile."""
  return plgpu.layout_cast(ref[...], TILED.reduce(1 - axis))


def along(x_C, axis, shape):
  """A vector repeated so that it runs along `axis`."""
  return lax.broadcast_in_dim(x_C, shape, [axis])


def transposed(ref):
  return ref.transpose((1, 0))


def _order(dtype):
  return plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize)), plgpu.SwizzleTransform(128)
