"""What holds for every norm that shares statistics between tokens: masks, meshes, hostile inputs, bfloat16."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import jax.numpy as jnp
import numpy as np
import pytest

from layers.norms.batch_norm import BatchNorm
from layers.norms.evonorm import EvoNorm
from layers.norms.group_norm import GroupNorm
from layers.norms.instance_norm import InstanceNorm
from layers.norms.power_norm import PowerNorm
from layers.norms.prepbn import PRepBN
from layers.norms.unified_norm import UnifiedNorm
from tests.layers.norms import driven

B, T, D = 8, 3, 4
STATEFUL = [BatchNorm(train=True), PRepBN(total=9, train=True), PowerNorm(warmup=0, groups=2, train=True),
            EvoNorm("B0", train=True),
            UnifiedNorm(forward_window=2, backward_window=2, warmup=0, ramp=0, filtration=True, train=True)]
STATELESS = [EvoNorm("S0", groups=2), GroupNorm(groups=2), InstanceNorm()]
every = pytest.mark.parametrize("module", STATEFUL + STATELESS, ids=lambda m: type(m).__name__)
stateful = pytest.mark.parametrize("module", STATEFUL, ids=lambda m: type(m).__name__)
STEP = 4  # past every warm-up


def _start(module):
  """Returns variables whose running state is not that of the first step, mask, x and weights."""
  x, mask = driven.tokens(0, B, T, D), np.random.default_rng(1).random((B, T)) < 0.7
  state = driven.start(module, x)
  for t in range(2, STEP):
    state = driven.step(module, state, driven.tokens(t, B, T, D), driven.tokens(t + 9, B, T, D), t, mask)[2]
  return state, mask, x, driven.tokens(2, B, T, D)


def _close(got, want, tolerance=2e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance / 10), got, want)


@every
def test_masked_positions_touch_no_statistic(module):
  state, mask, x, G = _start(module)
  G = G * mask[..., None]
  got = driven.step(module, state, np.where(mask[..., None], x, np.float32(1e6)), G, STEP, mask)
  want = driven.step(module, state, np.where(mask[..., None], x, np.float32(-3)), G, STEP, mask)
  np.testing.assert_array_equal(np.asarray(got[0])[mask], np.asarray(want[0])[mask])
  np.testing.assert_array_equal(np.asarray(got[1][1])[mask], np.asarray(want[1][1])[mask])
  jax.tree.map(np.testing.assert_array_equal, (got[1][0], got[2]), (want[1][0], want[2]))
  # Statistics of the real ones are those of a batch that holds nothing else.
  if module in STATEFUL and not isinstance(module, EvoNorm):
    few = driven.step(module, state, x[mask][None], G[mask][None], STEP, np.ones((1, mask.sum()), bool))
    _close(few[2], want[2])


@every
def test_hostile_batches_stay_finite_and_nothing_real_moves_nothing(module):
  state, mask, x, G = _start(module)
  empty = np.zeros_like(mask)
  for fill, chosen in ((x, empty), (np.zeros_like(x), mask), (np.full_like(x, 1e4), mask)):
    out = driven.step(module, state, fill, G, STEP, chosen)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))
  moved = driven.step(module, state, x, G, STEP, empty)[2]
  if not isinstance(module, UnifiedNorm):  # to it such a batch is one like the average
    _close(moved.get("batch_stats", {}), state.get("batch_stats", {}), 1e-6)
  else:
    np.testing.assert_allclose(moved["batch_stats"]["rows"][(STEP + 1) % 2], state["batch_stats"]["var"])


@every
def test_bfloat16_stays_near_float32_and_keeps_its_statistics_in_float32(module):
  state, mask, x, G = _start(module)
  half = driven.step(module, state, x.astype(jnp.bfloat16), G, STEP, mask)
  whole = driven.step(module, state, x.astype(jnp.bfloat16).astype(np.float32), G, STEP, mask)
  assert half[0].dtype == jnp.bfloat16 and half[1][1].dtype == jnp.bfloat16
  assert driven.rel(half[0], whole[0]) < 4e-3 and driven.rel(half[1][1], whole[1][1]) < 1e-2
  _close(half[2], whole[2], 1e-2)
  assert {leaf.dtype for leaf in jax.tree.leaves(half[2])} <= {jnp.dtype("float32"), jnp.dtype("int32")}


@stateful
def test_statistics_under_a_mesh_are_those_of_the_whole_batch(module):
  state, mask, x, G = _start(module)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
  rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("data",), ()))
  x_, G_, mask_ = jax.device_put((x, G, mask), rows)
  _close(driven.step(module, jax.device_put(state, whole), x_, G_, STEP, mask_),
         driven.step(module, state, x, G, STEP, mask))


@stateful
def test_making_parameters_learns_nothing_and_evaluation_writes_nothing(module):
  x = driven.tokens(3, B, T, D)
  made = jax.jit(module.init)(jax.random.key(0), x)
  assert {value for leaf in jax.tree.leaves(made["batch_stats"]) for value in leaf.ravel().tolist()} <= {0.0, 1.0}
  judged = module.clone(train=False)
  y, changed = jax.jit(lambda v: judged.apply(v, x, mutable=["batch_stats"]))(made)
  jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], made["batch_stats"])
  np.testing.assert_array_equal(y, jax.jit(lambda v: judged.apply(v, x))(made))
