"""Target variance rescaling touches what grew, when it is due, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.rescale import target_variance_rescaling

LAYERS = 3


def _params():
  draw = np.random.default_rng(0)
  array = lambda std, *shape: (std * draw.standard_normal(shape) + 0.01).astype(np.float32)
  spread = np.asarray([0.01, 0.05, 0.1], np.float32).reshape(LAYERS, 1, 1)  # the first is small enough
  block = {"channel": {"up": {"kernel": spread * array(1, LAYERS, 6, 8), "bias": array(1, LAYERS, 8)}},
           "mixer": {"query": {"kernel": spread[..., None] * array(1, LAYERS, 6, 2, 3)}},
           "norm": {"scale": array(1, LAYERS, 6)}}
  return {"embedding": {"embedding": array(1, 5, 6)}, "head": {"kernel": array(1, 6, 5)},
          "stack": {"scan_0_to_2": {"block_0": block}}}


def _after(params, steps=1, every=1, **fields):
  rule = optax.chain(optax.sgd(0.0), target_variance_rescaling(every, **fields))
  @jax.jit
  def step(params, state):
    updates, state = rule.update(jax.tree.map(jnp.ones_like, params), state, params)
    return optax.apply_updates(params, updates), state
  state = rule.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return params


def test_a_grown_kernel_has_the_target_deviation_its_mean_and_no_bias():
  params = _params()
  after = _after(params)
  old, new = (tree["stack"]["scan_0_to_2"]["block_0"] for tree in (params, after))
  for path in (("channel", "up"), ("mixer", "query")):
    W, V = (np.asarray(t[path[0]][path[1]]["kernel"], np.float64).reshape(LAYERS, -1) for t in (old, new))
    np.testing.assert_array_equal(V[0], W[0])  # below the threshold
    np.testing.assert_allclose(V[1:].std(1, ddof=1), 0.02, rtol=1e-5)
    np.testing.assert_allclose(V[1:].mean(1), W[1:].mean(1), atol=1e-7)
  np.testing.assert_array_equal(new["channel"]["up"]["bias"][0], old["channel"]["up"]["bias"][0])
  assert np.all(new["channel"]["up"]["bias"][1:] == 0)
  for path in (("embedding", "embedding"), ("head", "kernel")):
    np.testing.assert_array_equal(after[path[0]][path[1]], params[path[0]][path[1]])
  np.testing.assert_array_equal(new["norm"]["scale"], old["norm"]["scale"])


@pytest.mark.parametrize("threshold, moved", [(1.19, True), (1.21, False)])
def test_the_threshold_is_where_it_is_said(threshold, moved):
  W = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)
  W *= np.float32(1.2 * 0.02) / W.std(ddof=1)
  params = {"stack": {"layers_0_to_0": {"block_0": {"channel": {"down": {"kernel": W}}}}}}
  after = jax.tree.leaves(_after(params, threshold=threshold))[0]
  assert bool(np.any(after != W)) == moved


def test_it_is_due_every_so_many_steps():
  params = _params()
  changed = [not np.array_equal(_after(params, steps, 3)["stack"]["scan_0_to_2"]["block_0"]["mixer"]["query"]["kernel"],
                                params["stack"]["scan_0_to_2"]["block_0"]["mixer"]["query"]["kernel"])
             for steps in (2, 3)]
  assert changed == [False, True]
