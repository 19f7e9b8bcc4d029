"""How arrays are cut for the TPU kernels: heads per grid step, padding, blocks and gate rows.

A block of a flat [B, T, heads * D] array must be a multiple of 128 lanes wide, or all of it. So D = 64
goes two heads to a block, D = 128 and 256 go as they are, and other widths are padded with zeros (a copy).
"""

import dataclasses
from typing import Any

from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from pallas_kernels.chunk_recurrence.plan import Inputs, Plan

# Dims: B batch, T tokens, H value heads, G key heads, K key width, V value width, C chunk, N chunks,
# R rows of gates (hp of cumulative decay, hp of beta).

# By (vector decay, delta): for matmuls in bfloat16 and in float32.
TEMPORARIES = {(False, False): (6, 20), (False, True): (14, 40),
               (True, False): (24, 84), (True, True): (30, 112)}
VMEM_BUDGET = 12 * 2**20  # bytes, of the 16 MiB that the compiler grants by default


@dataclasses.dataclass(frozen=True)
class Tiling:
  """Sizes after padding, and the blocks that follow from them.

  Attributes:
    plan: the call.
    hp: value heads of a grid step.
    kb: key heads of a grid step; 1 if several steps share a key head.
    K, V: padded widths.
  """

  plan: Plan
  hp: int
  kb: int
  K: int
  V: int

  @property
  def grid(self):
    return self.plan.B, self.plan.H // self.hp, self.plan.chunks

  @property
  def gate_rows(self) -> int:
    return self.hp * ((self.plan.decay == "scalar") + self.plan.delta)

  @property
  def fed(self) -> Any:
    """Dtype that matmuls are fed with."""
    return jnp.float32 if self.plan.precision == "highest" else jnp.dtype(self.plan.dtype)

  @property
  def key_groups(self) -> int:
    """Grid steps that share a key head, each with its own part of dq and dk."""
    return max(1, self.plan.H // self.plan.G // self.hp)

  def array(self, name: str):
    """(shape, dtype) of a kernel operand or result."""
    B, groups, N = self.grid
    T, H, dtype = N * self.plan.chunk, self.plan.H, jnp.dtype(self.plan.dtype)
    partial = jnp.dtype(jnp.float32) if self.key_groups > 1 else dtype
    return {
        "q": ((B, T, self.plan.G * self.K), dtype), "k": ((B, T, self.plan.G * self.K), dtype),
        "dq": ((B, T, groups * self.kb * self.K), partial), "dk": ((B, T, groups * self.kb * self.K), partial),
        "v": ((B, T, H * self.V), dtype), "o": ((B, T, H * self.V), dtype),
        "dv": ((B, T, H * self.V), dtype), "do": ((B, T, H * self.V), dtype),
        "g": ((B, T, H * self.K), jnp.float32), "dg": ((B, T, H * self.K), jnp.float32),
        "rows": ((B, groups, N, self.gate_rows, self.plan.chunk), jnp.float32),
        "drows": ((B, groups, N, self.gate_rows, self.plan.chunk), jnp.float32),
        "segments": ((B, N, 4, self.plan.chunk), jnp.float32),
        "state": ((B, H, self.K, self.V), jnp.float32), "final": ((B, H, self.K, self.V), jnp.float32),
        "dstate": ((B, H, self.K, self.V), jnp.float32), "dfinal": ((B, H, self.K, self.V), jnp.float32),
        "states": ((N, B, H, self.K, self.V), dtype),
    }[name]

  def block(self, name: str, backwards: bool) -> pl.BlockSpec:
    """Block of an operand or result at a grid step; `backwards` takes the chunks last to first."""
    N, C = self.plan.chunks, self.plan.chunk
    at = (lambda n: N - 1 - n) if backwards else (lambda n: n)
    key_head = lambda j: j if self.key_groups == 1 else lax.div(j, self.key_groups)
    if name in ("q", "k"):
      return pl.BlockSpec((1, C, self.kb * self.K), lambda b, j, n: (b, at(n), key_head(j)))
    if name in ("dq", "dk"):
      return pl.BlockSpec((1, C, self.kb * self.K), lambda b, j, n: (b, at(n), j))
    if name in ("g", "dg", "v", "o", "dv", "do"):
      width = self.hp * (self.K if name in ("g", "dg") else self.V)
      return pl.BlockSpec((1, C, width), lambda b, j, n: (b, at(n), j))
    if name in ("rows", "drows"):
      return pl.BlockSpec((1, 1, 1, self.gate_rows, C), lambda b, j, n: (b, j, at(n), 0, 0))
    if name == "segments":
      return pl.BlockSpec((1, 1, 4, C), lambda b, j, n: (b, at(n), 0, 0))
    if name == "states":
      return pl.BlockSpec((1, 1, self.hp, self.K, self.V), lambda b, j, n: (at(n), b, j, 0, 0))
    return pl.BlockSpec((1, self.hp, self.K, self.V), lambda b, j, n: (b, j, 0, 0))

  def pad_tokens(self, x_BTHD, width: int):
    """[B,T,heads,D] to the flat [B, N C, heads * width]."""
    B, T, heads, D = x_BTHD.shape
    extra = self.plan.chunks * self.plan.chunk - T
    if extra or width > D:
      x_BTHD = jnp.pad(x_BTHD, ((0, 0), (0, extra), (0, 0), (0, width - D)))
    return x_BTHD.reshape(B, T + extra, heads * width)

  def pad_state(self, S):
    K, V = S.shape[-2:]
    if (K, V) == (self.K, self.V):
      return S
    return jnp.pad(S, [(0, 0)] * (S.ndim - 2) + [(0, self.K - K), (0, self.V - V)])

  def sum_groups(self, dx):
    """Adds up the parts of dq or dk that steps with a common key head wrote."""
    if self.key_groups == 1:
      return dx
    B, T, _ = dx.shape
    return jnp.sum(dx.reshape(B, T, self.plan.G, self.key_groups, self.K), axis=3).reshape(B, T, -1)


def pack(plan: Plan, tiling: Tiling, inputs: Inputs) -> dict:
  """Operands by name."""
  packed = {"q": tiling.pad_tokens(inputs.q, tiling.K), "k": tiling.pad_tokens(inputs.k, tiling.K),
            "v": tiling.pad_tokens(inputs.v, tiling.V), "state": tiling.pad_state(inputs.state)}
  if inputs.segments is not None:
    packed["segments"] = _segment_rows(plan, inputs.segments)
  return packed | pack_gates(plan, tiling, inputs.g, inputs.beta)


def pack_gates(plan: Plan, tiling: Tiling, g, beta) -> dict:
  """The operands that g and beta become; differentiated by jax."""
  packed, rows = {}, []
  if plan.decay == "vector":
    packed["g"] = tiling.pad_tokens(g, tiling.K)
  elif plan.decay == "scalar":
    # A matmul: the layouts of XLA's cumsum pad a few numbers to whole tiles.
    before_CC = jnp.triu(jnp.ones((plan.chunk, plan.chunk), jnp.float32))
    before_CC = before_CC.T if plan.reverse else before_CC
    rows.append(jnp.matmul(_rows(plan, tiling, g), before_CC, precision=lax.Precision.HIGHEST))
  if plan.delta:
    rows.append(_rows(plan, tiling, beta))
  if rows:
    packed["rows"] = jnp.concatenate(rows, axis=3)
  return packed


def unpack_tokens(plan: Plan, x, heads: int, width: int):
  """[B, N C, heads * padded] to [B,T,heads,width]."""
  return x.reshape(*x.shape[:2], heads, -1)[:, :plan.T, :, :width]


def unpack_state(plan: Plan, S):
  return S[..., :plan.K, :plan.V]


def refuse(plan: Plan) -> str | None:
  """Reason why the kernels cannot be compiled for `plan`, or None."""
  if plan.dtype not in ("float32", "bfloat16"):
    return f"{plan.dtype} is not a dtype of TPU matrix units; cast q, k, v to float32 or bfloat16"
  if plan.chunk < 16:
    return f"chunk={plan.chunk} is below 16, the rows of a bfloat16 tile"
  tiling = choose_tiling(plan)
  if vmem_bytes(tiling) > VMEM_BUDGET:
    return (f"K={plan.K}, V={plan.V}, chunk={plan.chunk} need about {vmem_bytes(tiling) / 2**20:.0f} MiB of "
            f"VMEM, more than {VMEM_BUDGET / 2**20:.0f} MiB; take a smaller chunk")
  return None


def choose_tiling(plan: Plan) -> Tiling:
  """The largest group of heads that divides, is whole lanes and fits VMEM; one head if none does."""
  fitting = [t for t in map(lambda hp: _tiling(plan, hp), (4, 2, 1)) if t is not None]
  small = [t for t in fitting if vmem_bytes(t) <= VMEM_BUDGET]
  return small[0] if small else fitting[-1]


def vmem_bytes(tiling: Tiling) -> int:
  """Model of a backward step: double-buffered blocks, states, and what the compiler keeps of temporaries.

  The counts of temporaries, [hp, C, lanes] arrays in float32, were fitted to compilations for v5e.
  """
  plan, C = tiling.plan, tiling.plan.chunk
  size = 4 if tiling.fed == jnp.float32 else 2
  blocks = C * (4 * tiling.kb * tiling.K + 3 * tiling.hp * tiling.V) * size
  if plan.decay == "vector":
    blocks += 2 * C * tiling.hp * tiling.K * 4
  states = tiling.hp * tiling.K * max(tiling.V, 128)
  narrow, wide = TEMPORARIES[plan.decay == "vector", plan.delta]
  lanes = max(tiling.K, tiling.V, C, 128)
  return (2 * (blocks + states * (8 + size)) + 4 * states
          + (wide if size == 4 else narrow) * tiling.hp * C * lanes * 4)


def _tiling(plan, hp):
  share = plan.H // plan.G
  if plan.H % hp or (hp % share and share % hp):
    return None
  kb = max(1, hp // share)
  whole = lambda width, heads, total: heads == total or heads * width % 128 == 0
  up = lambda width, lanes: -(-width // lanes) * lanes
  K, V = up(plan.K, 64), up(plan.V, 64)
  # Keys are cut by key heads, their gates and the parts of their gradients by value heads.
  if not (whole(K, kb, plan.G) and whole(K, hp, plan.H) and whole(K, kb, plan.H // hp * kb)):
    K = up(plan.K, 128)
  return Tiling(plan, hp, kb, K, V if whole(V, hp, plan.H) else up(plan.V, 128))


def _rows(plan, tiling, x_BTH):
  """[B,T,H] to [B, H/hp, N, hp, C]."""
  B, T, H = x_BTH.shape
  N, C = plan.chunks, plan.chunk
  x = jnp.pad(x_BTH, ((0, 0), (0, N * C - T), (0, 0))) if N * C > T else x_BTH
  return x.reshape(B, N, C, H // tiling.hp, tiling.hp).transpose(0, 3, 1, 4, 2)


def _segment_rows(plan, segments_BT):
  """[B,N,4,C]: ids, row is of the entry's segment, row is of the exit's, entry's is the exit's."""
  N, C = plan.chunks, plan.chunk
  ids = jnp.pad(segments_BT, ((0, 0), (0, N * C - plan.T)), mode="edge").reshape(-1, N, C)
  ids = ids.astype(jnp.float32)
  first, last = (ids[:, :, -1:], ids[:, :, :1]) if plan.reverse else (ids[:, :, :1], ids[:, :, -1:])
  if plan.reverse:
    carried = jnp.concatenate([last[:, 1:], first[:, -1:]], axis=1)
  else:
    carried = jnp.concatenate([first[:, :1], last[:, :-1]], axis=1)
  same = lambda a, b: jnp.broadcast_to((a == b).astype(jnp.float32), ids.shape)
  return jnp.stack([ids, same(ids, carried), same(ids, last), same(carried, last)], axis=2)
