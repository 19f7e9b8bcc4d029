"""State of norms in the training step: what backward passes write, and the step as a clock."""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from layers import backward_state
from layers.lm import LM
from layers.norms.batch_norm import BatchNorm
from layers.norms.power_norm import PowerNorm
from layers.norms.prepbn import PRepBN
from layers.norms.unified_norm import UnifiedNorm
from layers.placement import placement
from layers.stack import Stack
from research import losses, sharding
from research import program as programs
from research import state as states
from research import step as steps
from tests.layers import toy as layers
from tests.research import toy

# Dims: B batch, T tokens.
B, T = 16, 6


class AllNorms(nn.Module):
  """Every kind of state, one norm after the other."""

  @nn.compact
  def __call__(self, x, mask=None):
    for norm in (BatchNorm(train=True), PRepBN(total=4, train=True),
                 UnifiedNorm(warmup=1, ramp=1, forward_window=2, backward_window=2, train=True),
                 PowerNorm(warmup=1, train=True)):
      x = norm(x, mask)
    return x


@dataclasses.dataclass(frozen=True)
class Next:
  """Predicts the token before."""

  on_device: ClassVar[bool] = False

  def loss(self, outputs, batch):
    return losses.cross_entropy(outputs, batch["labels"], batch["weights"]), {}


def _model(scan, remat):
  stack = functools.partial(Stack, (layers.Mean,) * 2, None, AllNorms, placement("pre", 2),
                            scan=scan, remat=remat)
  return LM(5, 4, stack, embedding_std=1.0)


def _batch(seed, rows=B):
  tokens_BT = np.random.default_rng(seed).integers(0, 5, (rows, T)).astype(np.int32)
  return {"inputs": tokens_BT, "labels": np.roll(tokens_BT, 1, 1), "weights": np.ones((rows, T), np.float32)}


OPTIMIZER = optax.sgd(0.1)
SCANNED, FLAT = _model(True, "full"), _model(False, "none")


def _train(model, accumulate, state, batch):
  return steps.train_step(state, batch, model=model, task=Next(), optimizer=OPTIMIZER, schedule=lambda n: 0.1,
                          accumulate=accumulate, log_every=10, patience=5)


one_step = jax.jit(functools.partial(_train, FLAT, 2))
group_step = jax.jit(jax.vmap(functools.partial(_train, SCANNED, 2)))


def _start(seed):
  """Returns the state before step 0 of the flat model."""
  tokens = np.zeros((1, T), np.int32)
  shapes = jax.eval_shape(FLAT.init, jax.random.key(0), tokens)
  # First values of states by hand: their init would be one more compilation.
  first = lambda path, s: jnp.full(s.shape, path[-1].key in ("var", "phi"), s.dtype)
  extra = {k: jax.tree_util.tree_map_with_path(first, dict(v)) for k, v in shapes.items() if k != "params"}
  params = jax.tree.map(jnp.asarray, layers.parameters(FLAT, seed, tokens))
  zero = jnp.zeros((), jnp.int32)
  return states.TrainState(
      step=zero, cursor=zero, params=params, extra=extra, opt_state=OPTIMIZER.init(params),
      key=jax.random.key(seed), skipped=zero, streak=zero, sums={n: jnp.zeros(2) for n in ("loss", *steps.OWN)})


def _scanned(tree):
  """Turns two layers of the flat model into one scan; leaves anything else as it is."""
  if isinstance(tree, dict) and "layers_0_to_0" in tree:
    one, other = tree["layers_0_to_0"], tree["layers_1_to_1"]
    kept = {k: v for k, v in tree.items() if not k.startswith("layers_")}
    return kept | {"scan_0_to_1": jax.tree.map(lambda *x: jnp.stack(x), one, other)}
  return {k: _scanned(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _as_scan(state):
  return state.replace(params=_scanned(state.params), extra=_scanned(state.extra))


@pytest.fixture(scope="module")
def history():
  """Returns for two seeds their states before and after each of 4 steps with 2 microbatches."""
  found = []
  for seed in (0, 1):
    line = [_start(seed)]
    for n in range(4):
      line.append(one_step(line[-1], _batch(10 * seed + n)))
    found.append(line)
  return found


def test_every_state_moves_at_every_step_and_the_clock_is_the_step(history):
  for line in history:
    for n, (old, new) in enumerate(zip(line, line[1:])):
      assert new.streak == 0
      for path, leaf in jax.tree_util.tree_leaves_with_path(new.extra):
        name, before = jax.tree_util.keystr(path), functools.reduce(lambda t, e: t[e.key], path, old.extra)
        if "clock" in name:
          assert leaf == n
        elif not name.endswith(("'uses']", "'skips']")):
          assert np.any(leaf != before), (n, name)


def test_scan_remat_seeds_and_devices_change_no_state(history):
  """All four at once against none of them: seeds side by side, parameters split over fsdp."""
  mesh = sharding.mesh_of(toy.config(mesh__fsdp=2, mesh__data=4))
  group = jax.tree.map(lambda *x: jnp.stack(x), *[_as_scan(line[0]) for line in history])
  placed = sharding.of_state(jax.eval_shape(lambda: group), mesh, stacked_seeds=True)
  for n in range(4):
    group = jax.device_put(group, placed)  # else the partitioner's own choice would be compiled anew
    batch = jax.tree.map(lambda *x: np.stack(x), *[_batch(10 * seed + n) for seed in (0, 1)])
    group = group_step(group, jax.device_put(batch, sharding.of_batch(mesh, stacked_seeds=True)))
    for seed, line in enumerate(history):
      want = _as_scan(line[n + 1])
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a[seed], b, rtol=1e-3, atol=2e-5),
                   (group.params, group.extra), (want.params, want.extra))


class Small(nn.Module):
  """One PowerNorm between a table and a head."""

  @nn.compact
  def __call__(self, x_BT, states=None, segment_ids=None):
    x_BTD = self.param("table", nn.initializers.normal(1.0), (5, 3))[x_BT]
    return nn.Dense(5, name="head")(PowerNorm(warmup=9, train=True, name="norm")(x_BTD)), states


def test_what_microbatches_write_is_averaged_and_each_reads_the_old():
  written = jax.jit(lambda state, batch, accumulate: steps.gradient(Small(), Next(), state, batch, accumulate),
                    static_argnums=2)
  tokens, zero = _batch(3)["inputs"], jnp.zeros((), jnp.int32)
  variables = dict(jax.jit(Small().init)(jax.random.key(0), tokens))
  variables["backward_state"] = {"norm": {"nu_D": jnp.asarray([0.3, -0.2, 0.1]), "uses": jnp.zeros(())}}
  state = states.TrainState(
      step=zero, cursor=zero, params=variables.pop("params"), extra=variables, opt_state=(),
      key=jax.random.key(1), skipped=zero, streak=zero, sums={})
  # During the warm-up a half does not see the statistics of the other.
  def nu(batch, accumulate, old):
    extra = written(state.replace(extra={**state.extra, "backward_state": old}), batch, accumulate)[2]
    return np.asarray(extra["backward_state"]["norm"]["nu_D"])
  old, none = state.extra["backward_state"], jax.tree.map(jnp.zeros_like, state.extra["backward_state"])
  batch = _batch(3)
  halves = [jax.tree.map(lambda x: x[half], batch) for half in (slice(0, 8), slice(8, 16))]
  # What is written is linear in (gradient, old state), and in the mean loss of the whole batch a half has
  # half the gradient: take away half of what the gradient alone writes.
  want = np.mean([nu(half, 1, old) - nu(half, 1, none) / 2 for half in halves], axis=0)
  np.testing.assert_allclose(nu(batch, 2, old), want, rtol=1e-4)


def test_a_module_used_twice_has_the_mean_and_one_not_used_keeps_its_own():
  ones = lambda *shape: jnp.ones(shape)
  state = {"a": {"nu": ones(3), "uses": jnp.zeros(())}, "scan": {"b": {"nu": ones(2, 3), "uses": jnp.zeros(2)}}}
  total = {"a": {"nu": 5 * ones(3), "uses": 2 * ones()},
           "scan": {"b": {"nu": 7 * ones(2, 3), "uses": jnp.asarray([0.0, 1.0])}}}
  new = backward_state.advance(state, total)
  np.testing.assert_array_equal(new["a"]["nu"], [2.5, 2.5, 2.5])
  np.testing.assert_array_equal(new["scan"]["b"]["nu"], [[1, 1, 1], [7, 7, 7]])
  assert np.all(new["scan"]["b"]["uses"] == 0)


def test_a_refused_step_keeps_every_state(history):
  state = history[0][4]
  bad = _batch(5) | {"weights": np.full((B, T), np.nan, np.float32)}
  after = one_step(state, bad)
  assert after.streak == 1
  jax.tree.map(np.testing.assert_array_equal, (after.extra, after.params), (state.extra, state.params))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["batch_norm.BatchNorm", "prepbn.RepBN", "prepbn.PRepBN", "evonorm.EvoNorm",
                                  "power_norm.PowerNorm", "unified_norm.UnifiedNorm"])
def test_a_config_trains_with_the_norm(name):
  kind = dict(model__norm__kind="B0") if "evonorm" in name else {}
  program = programs.make(toy.config(model__norm__name=name, optim__accumulate=2, **kind))
  before, (after, streak) = program.init(0), program.step(program.init(0), None)
  assert streak == 0
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), *[s.extra["batch_stats"] for s in (after, before)])
  assert all(v for path, v in jax.tree_util.tree_leaves_with_path(moved) if path[-1].key != "skips")


@pytest.mark.slow
def test_a_config_trains_gains_alone_under_reparametrised_maps_and_rescales_nothing_frozen():
  sigma = dict(model__mixer__kernel_transform="sigma_reparam", model__channel__kernel_transform="sigma_reparam:spectral")
  config = toy.config(model__mixer__name="attention.Attention", model__mixer__max_tokens=8, model__mixer__head_dim=4,
                      model__norm__name="batch_norm.BatchNorm", model__depth=2, model__remat="full", mesh__fsdp=2,
                      mesh__data=4, optim__trainable="norm/", optim__rescale_every=1, **sigma)
  program = programs.make(config, seeds=2)
  state = program.init(jnp.arange(2))
  before = jax.device_get(state)
  for _ in range(2):
    state, streak = program.step(state, None)
  after = jax.device_get(state)
  assert np.all(streak == 0)
  for path, leaf in jax.tree_util.tree_leaves_with_path(after.params):
    old = functools.reduce(lambda t, e: t[e.key], path, before.params)
    assert np.any(leaf != old) == ("norm" in jax.tree_util.keystr(path)), path
  # Kernels stand still, so each step brings u nearer to their first singular vector; it began there.
  found, old = (t.extra["kernel_state"]["stack"]["scan_0_to_1"]["block_0"] for t in (after, before))
  np.testing.assert_allclose(found["mixer"]["query"]["sigma"], old["mixer"]["query"]["sigma"], rtol=1e-5)
  assert set(found["mixer"]) == {"query", "key", "value", "out"} and set(found["channel"]) == {"up", "down"}
