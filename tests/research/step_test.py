"""The step: microbatches add up, what counts for nothing changes nothing, sums begin anew."""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import losses
from research import state as states
from research import step as steps

# Dims: B batch, T tokens, V vocabulary.


class Line(nn.Module):
  """Logits from a table and a matrix; sows a loss and a metric if asked."""

  sows: float = 0.0

  @nn.compact
  def __call__(self, x_BT, states=None, segment_ids=None):
    table = self.param("table", nn.initializers.normal(1.0), (5, 3))
    if self.sows:
      self.sow("losses", "size", self.sows * jnp.sum(table**2))
      self.sow("metrics", "largest", jnp.max(table))
    return nn.Dense(5, name="head")(table[x_BT]), states


@dataclasses.dataclass(frozen=True)
class Copy:
  """Says every token again; the loss of each has a weight."""

  on_device: ClassVar[bool] = False

  def loss(self, outputs, batch):
    args = outputs, batch["labels"], batch["weights"]
    return losses.cross_entropy(*args), {"accuracy": losses.accuracy(*args)}


def _batch(seed, uneven=False):
  draw = np.random.default_rng(seed)
  tokens_BT = draw.integers(0, 5, (12, 4)).astype(np.int32)
  weights_BT = draw.uniform(0, 3, (12, 4)) * (draw.random((12, 4)) < 0.5) if uneven else np.ones((12, 4))
  return {"inputs": tokens_BT, "labels": (tokens_BT + 1) % 5, "weights": weights_BT.astype(np.float32)}


OPTIMIZER = optax.adam(0.1)
NAMES = ("loss", "accuracy", *steps.OWN)


@functools.partial(jax.jit, static_argnames=("accumulate", "log_every", "sows", "patience"))
def step(state, batch, accumulate=1, log_every=100, sows=0.0, patience=5):
  return steps.train_step(state, batch, model=Line(sows), task=Copy(), optimizer=OPTIMIZER,
                          schedule=lambda n: 0.1 / (1 + n), accumulate=accumulate,
                          log_every=log_every, patience=patience)


@functools.partial(jax.jit, static_argnames="accumulate")
def gradient(state, batch, accumulate):
  return steps.gradient(Line(), Copy(), state, batch, accumulate)[:2]


@pytest.fixture(scope="module")
def start():
  """The state before step 0. The step under test does not donate it."""
  params = jax.jit(Line().init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  return states.TrainState(
      step=jnp.int32(0), cursor=jnp.int32(0), params=params, extra={}, opt_state=OPTIMIZER.init(params), key=jax.random.key(1),
      skipped=jnp.int32(0), streak=jnp.int32(0), sums={name: jnp.zeros(2) for name in NAMES})


def _close(got, want):
  jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("accumulate", [2, 3, 12])
def test_microbatches_make_the_gradient_and_the_metrics_of_the_whole(start, accumulate, uneven):
  batch = _batch(0, uneven)
  _close(gradient(start, batch, accumulate), gradient(start, batch, 1))


def test_the_gradient_is_that_of_the_weighted_mean(start):
  batch = _batch(1, uneven=True)

  @jax.jit
  @jax.grad
  def by_hand(params):
    logits_BTV = Line().apply({"params": params}, batch["inputs"])[0]
    nats_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, batch["labels"])
    return jnp.sum(nats_BT * batch["weights"]) / jnp.sum(batch["weights"])

  _close(gradient(start, batch, 1)[0], by_hand(start.params))


def test_a_batch_that_counts_for_nothing_moves_nothing(start):
  batch = _batch(2) | {"weights": np.zeros((12, 4), np.float32)}
  after = step(start, batch)
  _close(after.params, start.params)
  assert after.step == 1 and after.skipped == 0
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((after.params, after.opt_state, after.sums)))


def test_sums_begin_anew_after_a_logging_step(start):
  state, losses_seen = start, []
  for n in range(7):
    batch = _batch(n)
    loss, weight = jax.tree.map(np.asarray, gradient(state, batch, 1)[1]["loss"])
    losses_seen.append((float(loss), float(weight)))
    state = step(state, batch, log_every=3)
    since = losses_seen[n // 3 * 3:]
    np.testing.assert_allclose(state.sums["loss"], np.sum(since, axis=0), rtol=1e-5)
  assert state.sums["grad_norm"][1] == 1


def test_a_sown_loss_is_part_of_the_objective_once(start):
  batch, sows = _batch(3), 0.25
  plain = gradient(start, batch, 1)[0]
  sown = jax.jit(lambda s: steps.gradient(Line(sows), Copy(), s, batch, 1)[:2])(start)
  want = jax.tree.map(jnp.copy, plain) | {"table": plain["table"] + 2 * sows * start.params["table"]}
  _close(sown[0], want)
  np.testing.assert_allclose(sown[1]["largest"][0] / sown[1]["largest"][1], np.max(start.params["table"]))


def test_evaluation_and_training_see_one_loss_where_nothing_is_random(start):
  batch = _batch(4, uneven=True)
  sums = jax.jit(lambda s: steps.eval_step(s, batch, model=Line(), task=Copy()))(start)
  np.testing.assert_allclose(sums["loss"], jnp.stack(gradient(start, batch, 1)[1]["loss"]), rtol=1e-6)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_refused_step_is_a_step_that_was_left_out(start, at, poison):
  """Row 11: bit for bit, and the rest of the run with it."""
  state = skipped = start
  for n in range(6):
    batch = _batch(n)
    if n == at:
      bad = batch | {"weights": batch["weights"] * np.float32(poison)}
      state, skipped = step(state, bad), skipped.replace(step=skipped.step + 1)
    else:
      state, skipped = step(state, batch), step(skipped, batch)
    assert state.streak == (n == at)
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state),
                 (skipped.params, skipped.opt_state))
  assert state.skipped == 1 and state.step == 6


@pytest.mark.parametrize("row", [1, 4, 5])
def test_refused_steps_in_a_row_are_counted_and_patience_ends_training(start, row):
  state, patience = start, 5
  for n in range(8):
    poison = np.float32(np.nan if 1 <= n <= row else 1)
    batch = _batch(n)
    state = step(state, batch | {"weights": batch["weights"] * poison}, patience=patience)
  spent = row >= patience
  assert state.streak == (row + 2 if spent else 0)  # nothing is applied after that
  assert state.skipped == (row + 2 if spent else row)
