"""Schedules against their formulas, decay on matrices only, Muon layer by layer, every rule runs."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from research import optim
from research.defaults import DEFAULTS
from research.errors import ConfigError


def _node(**fields):
  return ml_collections.ConfigDict({**DEFAULTS["optim"], "name": "adamw", "lr": 0.5, "steps": 100} | fields)


def _by_hand(step, *, lr, steps, warmup, final, schedule):
  if step < warmup:
    first = lr / (warmup + 1)
    return first + (lr - first) * step / warmup
  done = min(1.0, (step - warmup) / max(1, steps - warmup))
  return {"constant": lr, "linear": lr * (1 + (final - 1) * done),
          "cosine": lr * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)}[schedule]


@pytest.mark.parametrize("warmup", [0, 1, 7, 100])
@pytest.mark.parametrize("schedule", optim.SCHEDULES)
def test_the_rate_follows_its_formula_at_every_step(schedule, warmup):
  fields = dict(lr=0.5, steps=100, warmup=warmup, final=0.1, schedule=schedule)
  got = jax.jit(optim.schedule_of(_node(**fields)))(jnp.arange(105)) if warmup else jax.vmap(
      lambda n: jnp.asarray(optim.schedule_of(_node(**fields))(n), jnp.float32))(jnp.arange(105))
  np.testing.assert_allclose(got, [_by_hand(n, **fields) for n in range(105)], rtol=2e-6, atol=1e-8)
  assert got[0] > 0  # the first update moves


def _params(layers=3):
  draw = np.random.default_rng(0)
  array = lambda *shape: jnp.asarray(draw.standard_normal(shape, np.float32))
  block = {"mixer": {"query": {"kernel": array(layers, 6, 2, 4)}, "out": {"kernel": array(layers, 2, 4, 6)}},
           "channel": {"up": {"kernel": array(layers, 6, 8), "bias": array(layers, 8)}},
           "norm": {"scale": array(layers, 6)}}
  return {"embedding": {"embedding": array(5, 6)}, "head": {"kernel": array(6, 5)},
          "stack": {"scan_0_to_2": {"block_0": block}}}


def _update(rule, params):
  grads = jax.tree.map(jnp.cos, params)
  return jax.jit(lambda: rule.update(grads, rule.init(params), params)[0])()


def test_decay_moves_matrices_and_nothing_else():
  params = _params()
  with_, without = (_update(optim.optimizer_of(_node(weight_decay=d)), params) for d in (0.3, 0.0))
  differ = jax.tree.map(lambda a, b: bool(np.any(a != b)), with_, without)
  block = differ["stack"]["scan_0_to_2"]["block_0"]
  assert block == {"mixer": {"query": {"kernel": True}, "out": {"kernel": True}},
                   "channel": {"up": {"kernel": True, "bias": False}}, "norm": {"scale": False}}
  assert differ["embedding"]["embedding"] and differ["head"]["kernel"]


def test_muon_of_scanned_layers_is_muon_of_each_layer():
  params = _params()
  rule = optim.optimizer_of(_node(name="muon"))
  scanned = _update(rule, params)["stack"]["scan_0_to_2"]["block_0"]
  for layer in range(3):
    one = jax.tree.map(lambda x: x[layer], params["stack"]["scan_0_to_2"]["block_0"])
    alone = _update(rule, dict(params, stack={"layers_0_to_0": {"block_0": one}}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[layer], b, rtol=1e-4, atol=1e-6),
                 scanned, alone["stack"]["layers_0_to_0"]["block_0"])


def test_clipping_bounds_the_gradient_that_the_rule_sees():
  params = _params()
  clipped = _update(optim.optimizer_of(_node(name="sgd", clip=0.01, schedule="constant")), params)
  np.testing.assert_allclose(optax.tree.norm(clipped), 0.5 * 0.01, rtol=1e-5)


@pytest.mark.parametrize("name", optim.rules())
def test_every_rule_takes_a_finite_step(name):
  params = _params(layers=1)
  updates = _update(optim.optimizer_of(_node(name=name, lr=1e-3)), params)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(updates))


@pytest.mark.parametrize("fields, says", [
    (dict(name="adamm"), "did you mean 'adam"), (dict(b3=0.1), "config.optim.b3=0.1: unknown key"),
    (dict(b1=1.0), "config.optim.b1=1.0"), (dict(lr=0.0), "config.optim.lr=0.0 must be above 0"),
    (dict(steps=0), "config.optim.steps=0"), (dict(steps=2**31), "config.optim.steps="),
    (dict(warmup=101), "warmup=101 must be from 0 to steps=100"), (dict(final=1.5), "final=1.5"),
    (dict(schedule="cosin"), "did you mean 'cosine'"), (dict(clip=-1.0), "clip=-1.0"),
    (dict(weight_decay=-0.1), "weight_decay=-0.1"), (dict(name="lbfgs"), "is no optimizer")])
def test_what_cannot_be_is_refused(fields, says):
  with pytest.raises(ConfigError, match=says):
    optim.optimizer_of(_node(**fields))


TRAINED = "norm/scale$|up/bias$"


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_what_is_not_trainable_stays_bit_for_bit_and_has_no_state(name):
  params = _params()
  fields = dict(name=name, clip=0.5, trainable=TRAINED) | ({} if name == "sgd" else dict(weight_decay=0.3))
  rule = optim.optimizer_of(_node(**fields))

  @jax.jit
  def step(params, state):
    updates, state = rule.update(jax.tree.map(jnp.cos, params), state, params)
    return optax.apply_updates(params, updates), state

  after, state = params, rule.init(params)
  for _ in range(3):
    after, state = step(after, state)
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, params)
  block = moved["stack"]["scan_0_to_2"].pop("block_0")
  assert block["norm"]["scale"] and block["channel"]["up"].pop("bias")
  assert not any(jax.tree.leaves((moved, block["mixer"], block["channel"])))
  shapes = {leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim > 1}
  assert shapes == (set() if name == "sgd" else {(3, 6), (3, 8)})


def test_clipping_counts_only_what_is_trained():
  rule = optim.optimizer_of(_node(name="sgd", clip=0.01, schedule="constant", trainable=TRAINED))
  np.testing.assert_allclose(optax.tree.norm(_update(rule, _params())), 0.5 * 0.01, rtol=1e-5)


def test_rescaling_is_a_setting():
  params = _params()
  for every, std in ((1, 0.5), (2, None)):
    rule = optim.optimizer_of(_node(name="sgd", rescale_every=every, rescale_target=0.5))
    kernel = optax.apply_updates(params, _update(rule, params))["stack"]["scan_0_to_2"]["block_0"]["channel"]["up"]["kernel"]
    got = np.asarray(kernel).reshape(3, -1).std(1, ddof=1)
    assert np.allclose(got, std, rtol=1e-4) if std else np.all(got > 0.7)


@pytest.mark.parametrize("fields, says", [
    (dict(trainable="("), r"config.optim.trainable='\(' is no regular expression"),
    (dict(trainable="nowhere"), "config.optim.trainable='nowhere' is found in no path of a parameter, such as stack/"),
    (dict(rescale_every=-1), "rescale_every=-1"), (dict(rescale_target=0.0), "rescale_target=0.0 must be above 0"),
    (dict(rescale_threshold=0.5), "rescale_threshold=0.5")])
def test_a_setting_that_cannot_be_is_refused(fields, says):
  with pytest.raises(ConfigError, match=says):
    optim.optimizer_of(_node(**fields)).init(_params())
