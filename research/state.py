"""Everything that a run carries from one step to the next, and how it starts."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from research import initialize

# Collections that a forward pass writes for the reader of one step only.
SOWN = ("losses", "metrics", "intermediates")


@flax.struct.dataclass
class TrainState:
  """The state; every leaf is a jax.Array, so a checkpoint is this tree.

  Attributes:
    step: steps taken, int32.
    cursor: number of the next training batch, int32; see `first_batch`.
    params: float32.
    extra: other variable collections of the model: batch statistics, what backward
      passes wrote (layers/backward_state.py), copies of the step (layers/clock.py), ...
    opt_state: of the optimizer.
    key: base key of the run; step n uses fold_in(key, n).
    skipped: steps whose update was refused because a number was not finite.
    streak: how many of them came last, in a row.
    sums: metric -> [2], sum and weight since the last logging step.
  """

  step: jax.Array
  cursor: jax.Array
  params: Any
  extra: Any
  opt_state: Any
  key: jax.Array
  skipped: jax.Array
  streak: jax.Array
  sums: dict[str, jax.Array]


def first_batch(seed):
  """Returns the number of the training batch that a seed begins with.

  Every seed reads a stretch of its own, of 2^20 batches, of the same endless data: seeds then
  differ in what they see and not only in their draws, as an interval over seeds has to count,
  while two arms of one seed see the same. Validation is the same for all.
  """
  return seed % 2048 * 2**20


def seed_of(state: TrainState) -> int:
  """Returns the seed of a run, below 2048; its batches say which it was."""
  return int(state.cursor - state.step) // 2**20


def init_state(seed, *, model, inputs, init, optimizer: optax.GradientTransformation,
               metrics: tuple[str, ...]) -> TrainState:
  """Returns the state before step 0; a pure function of the seed, to be jitted or vmapped.

  Args:
    seed: int32 scalar.
    model: the unbound model.
    inputs: shape of the model's inputs, with any batch size.
    init: the node `config.init`.
    optimizer: as research/optim.py builds it.
    metrics: names that the training step sums.
  """
  root = jax.random.key(seed)
  key_params, key_init, key_steps = (jax.random.fold_in(root, i) for i in range(3))
  one = jnp.zeros((1, *inputs.shape[1:]), inputs.dtype)
  variables = dict(model.init({"params": key_params, "dropout": key_params}, one))
  params = variables.pop("params")
  params = initialize.initialize(params, init, model.stack(parent=None).placement, key_init)
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      cursor=jnp.asarray(first_batch(seed), jnp.int32),
      params=params,
      extra={k: v for k, v in variables.items() if k not in SOWN},
      opt_state=optimizer.init(params),
      key=key_steps,
      skipped=jnp.zeros((), jnp.int32),
      streak=jnp.zeros((), jnp.int32),
      sums={name: jnp.zeros(2) for name in metrics})
