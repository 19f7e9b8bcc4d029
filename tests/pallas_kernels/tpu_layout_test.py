"""How calls are cut for the TPU kernels: what needs no padding is not padded, and everything fits VMEM."""

import pytest

from pallas_kernels import tpu_aot
from pallas_kernels.chunk_recurrence.shapes import RULES
from pallas_kernels.chunk_recurrence.tpu_layout import choose_tiling, refuse


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("decay, delta", RULES)
def test_two_heads_of_64_fill_the_lanes_that_one_head_of_128_fills(decay, delta, dtype):
  plans = [tpu_aot.plan_of(decay, delta, D=D, dtype=dtype) for D in (64, 128, 256)]
  tilings = [choose_tiling(plan) for plan in plans]
  assert [(tiling.K, tiling.V) for tiling in tilings] == [(64, 64), (128, 128), (256, 256)]
  assert tilings[0].hp > 1
  assert [refuse(plan) for plan in plans] == [None] * 3
