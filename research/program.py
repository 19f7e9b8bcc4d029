"""A config made runnable: its task and model, and the three functions a run calls.

    init(seeds)          -> state            jitted, sharded over the mesh
    step(state, batch)   -> state, streak    jitted, the old state's memory reused
    evaluate(state, i)   -> metric sums of validation batch i

With several seeds all three are vmapped: state and training batch have a leading axis of
seeds, the validation batch is shared. A task that lives on the device makes its batch inside the
compiled step.
"""

import concurrent.futures
import contextlib
import functools
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research import build, conversion, count, decode, diagnostics, factored, growth, initialize, lengths, optim, relaxed
from research import sample, sharding
from research import state as states
from research import step as steps
from research.errors import ConfigError, shown


class Program(NamedTuple):
  """What `make` returns; see the file's first lines.

  Attributes:
    abstract: shapes and shardings of the state.
    batch: shapes of one global batch.
    seeds: number of models trained side by side, 0 for one without the axis.
    small: the program of the model that this one is grown from, or None.
  """

  config: Any
  task: Any
  model: Any
  optimizer: optax.GradientTransformation
  mesh: jax.sharding.Mesh
  abstract: states.TrainState
  batch: dict
  seeds: int
  init: Any
  step: Any
  evaluate: Any
  small: Any = None

  def start(self, seeds):
    """Returns (first state, compiled step): both are compiled at the same time.

    On two cores the step is ready about as soon as it would be without the state.
    """
    rows = sharding.of_batch(self.mesh, stacked_seeds=bool(self.seeds))
    batch = None if self.task.on_device else jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows),
        _stacked(self.batch, self.seeds))
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
      state = beside.submit(self.init, seeds) if seeds is not None else None
      step = self.step.lower(self.abstract, batch).compile()
      return state and state.result(), step

  @property
  def tokens_per_step(self) -> int:
    return int(np.prod(self.batch["inputs"].shape[:2]))

  def put(self, batch):
    """Places a host batch on the mesh."""
    return sharding.put_batch(batch, self.mesh, self.config.task.batch_size)

  def train_batch(self, seeds, step: int):
    """Returns this process's rows of training batch `step` of a seed, or of an array of seeds."""
    rows = sharding.host_rows(self.mesh, self.config.task.batch_size)
    each = [self.task.batch("train", int(states.first_batch(seed)) + step, rows)
            for seed in np.atleast_1d(seeds)]
    return jax.tree.map(lambda *x: np.stack(x), *each) if self.seeds else each[0]

  def put_train(self, batch):
    """Places a training batch, with its axis of seeds if there is one."""
    return sharding.put_batch(batch, self.mesh, self.config.task.batch_size, seeds=self.seeds)

  def eval_batches(self, limit: int) -> int:
    """Returns how many validation batches to read: `limit`, or for 0 all there are.

    Data made on the device never ends; there the usual number is all.
    """
    if not hasattr(self.task, "batches"):
      return limit or max(1, self.config.train.eval_batches)
    whole = self.task.batches("validation")
    return min(limit, whole) if limit else whole

  def evaluated(self, state, limit: int) -> dict[str, np.ndarray]:
    """Returns metric -> mean over validation batches (an array over seeds, if any)."""
    total = {}
    rows = sharding.host_rows(self.mesh, self.config.task.batch_size)
    for i in range(self.eval_batches(limit)):
      batch = i if self.task.on_device else self.put(self.task.batch("validation", i, rows))
      sums = self.evaluate(state, batch)
      total = {k: total.get(k, 0.0) + np.asarray(v, np.float64) for k, v in sums.items()}
    return {f"eval/{k}": v[..., 0] / v[..., 1] for k, v in total.items()}

  def on(self, task):
    """Returns this program with another task to evaluate; it trains as before."""
    one = functools.partial(steps.eval_step, model=self.model, task=task)
    @_on(self.mesh)
    def evaluate(state, batch):
      batch = task.batch("validation", batch) if task.on_device else batch
      return (jax.vmap(one, in_axes=(0, None)) if self.seeds else one)(state, batch)
    return self._replace(task=task, evaluate=jax.jit(evaluate))

  def measured(self, state, task=None, limit: int = 0) -> dict[str, float]:
    """Returns metric -> mean over validation batches of one model, for the `measure` of an experiment.

    Args:
      state: of one model, without the axis of seeds.
      task: with the batch size of the program's own, say one of longer sequences; None takes the program's.
      limit: batches to read; 0 reads all there are.
    """
    one = self._replace(seeds=0).on(task or self.task)
    return {k: float(v) for k, v in one.evaluated(state, limit).items()}

  def decode_times(self, state) -> dict[str, float]:
    """Returns milliseconds per decoded token: research/decode.py, for the `measure` of an experiment."""
    return decode.times(self, state)

  def beginning(self, state):
    """Returns the state that the run of a seed below 2048 began with, for the `measure` of an experiment."""
    return self.init(states.seed_of(state))

  def depth_profile(self, state) -> dict[str, np.ndarray]:
    """Returns name -> one number per layer: research/diagnostics.py, for the `measure` of an experiment."""
    record, = diagnostics.records(self, diagnostics.profile(self), state, 0)
    return record

  def converted(self, state, to: str) -> dict[str, float]:
    """Returns how far the model is from its conversion: research/conversion.py, for the `measure` of an experiment."""
    return conversion.measured(self, state, to)

  def relaxed_losses(self, state, share: str, ranks, limit: int) -> dict[str, float]:
    """Returns the loss with layers tied: research/relaxed.py, for the `measure` of an experiment."""
    return relaxed.losses(self, state, share, ranks, limit)

  def factored_losses(self, state, experts: int, choices, limit: int) -> dict[str, float]:
    """Returns the loss with units cut into experts: research/factored.py, for the `measure` of an experiment."""
    return factored.losses(self, state, experts, choices, limit)


def check_train(train) -> None:
  """Refuses a setting of `config.train` that counts nothing."""
  for k, value in train.items():
    if k == "lengths":
      continue
    least = 1 if k in ("log_every", "keep", "nan_patience", "save_every") else 0
    if not least <= value < 2**31:
      raise ConfigError(f"config.train.{k}={shown(value)} must be at least {least}, and below 2**31.")


def make(config, *, seeds: int = 0) -> Program:
  """Builds the program of a config; traces everything, computes nothing.

  Raises:
    ConfigError: a name, key, number or combination that cannot run, or that does
      not fit this machine's memory.
  """
  check_train(config.train)
  task = build.task_of(config)
  model = build.model_of(config, task, train=True)
  eval_model = build.model_of(config, task, train=False)
  initialize.check(config.init)
  sample.check(config.sample, config.model.get("max_positions", 0))
  optimizer, accumulate = optim.optimizer_of(config.optim), config.optim.accumulate
  lengths.check(config, task)
  mesh = sharding.mesh_of(config)
  sharding.check_batch(mesh, config.task.batch_size, accumulate)
  if not 0 <= config.seed < 2**31:
    raise ConfigError(f"config.seed={config.seed} must be from 0 to 2**31 - 1.")

  batch = _batch_shapes(task)
  build.check_layers(config, batch["inputs"].shape[1])
  with _in_one_line(config):
    init = functools.partial(
        states.init_state, model=model, inputs=batch["inputs"], init=config.init,
        optimizer=optimizer)
    bare = jax.eval_shape(functools.partial(init, metrics=()), 0)
    diagnostics.check(config, bare.params)
    metrics = steps.metric_names(model, task, bare, batch)
    init = functools.partial(init, metrics=metrics)
    # The shapes of `init`, without tracing it a second time.
    abstract = bare.replace(sums={name: jax.ShapeDtypeStruct((2,), jnp.float32) for name in metrics})
  if seeds:
    init = jax.vmap(init)
    abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct((seeds, *s.shape), s.dtype), abstract)
  _fits(config, abstract, batch, accumulate, eval_model)
  placed = sharding.of_state(abstract, mesh, stacked_seeds=bool(seeds))
  abstract = jax.tree.map(
      lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), abstract, placed)

  one_step = functools.partial(
      steps.train_step, model=model, task=task, optimizer=optimizer,
      schedule=optim.schedule_of(config.optim), accumulate=accumulate,
      log_every=config.train.log_every, patience=config.train.nan_patience)
  one_eval = functools.partial(steps.eval_step, model=eval_model, task=task)
  step = _jit_step(one_step, task, mesh, placed, seeds)
  with _in_one_line(config):
    step.eval_shape(abstract, None if task.on_device else _stacked(batch, seeds))
  made = Program(
      config=config, task=task, model=eval_model, optimizer=optimizer, mesh=mesh,
      abstract=abstract, batch=batch, seeds=seeds, init=jax.jit(init, out_shardings=placed),
      step=step, evaluate=_jit_eval(one_eval, task, placed, mesh, seeds))
  if growth.asked(config):
    made = made._replace(small=make(growth.small_config(config), seeds=seeds))
    growth.check(made.small, made)
  return made


@contextlib.contextmanager
def _in_one_line(config):
  """Turns what tracing refuses into a ConfigError that begins with the key at fault."""
  try:
    yield
  except ConfigError:
    raise
  except (ValueError, TypeError, ArithmeticError, IndexError) as error:
    raise ConfigError(_one_line(config, str(error))) from error


def _on(mesh):
  """Lets the layers of a function see the mesh while they are traced."""
  def decorate(function):
    @functools.wraps(function)
    def traced(*args):
      with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return function(*args)
    return traced
  return decorate


def _jit_step(one_step, task, mesh, placed, seeds):
  @_on(mesh)
  def step(state, batch):
    if task.on_device:
      draw = lambda cursor: task.batch("train", cursor)
      batch = (jax.vmap(draw) if seeds else draw)(state.cursor)
      batch = jax.lax.with_sharding_constraint(batch, sharding.of_batch(mesh, stacked_seeds=bool(seeds)))
    state = (jax.vmap(one_step) if seeds else one_step)(state, batch)
    return state, state.streak
  rows = None if task.on_device else sharding.of_batch(mesh, stacked_seeds=bool(seeds))
  return jax.jit(step, donate_argnums=0, in_shardings=(placed, rows), out_shardings=(placed, None))


def _jit_eval(one_eval, task, placed, mesh, seeds):
  @_on(mesh)
  def evaluate(state, batch):
    if task.on_device:
      batch = task.batch("validation", batch)
    each = jax.vmap(one_eval, in_axes=(0, None)) if seeds else one_eval
    return each(state, batch)
  rows = None if task.on_device else sharding.of_batch(mesh)
  return jax.jit(evaluate, in_shardings=(placed, rows))


def _batch_shapes(task):
  if task.on_device:
    return jax.eval_shape(lambda: task.batch("train", jnp.zeros((), jnp.int32)))
  row = build.of_task(lambda: task.batch("train", 0, slice(0, 1)))
  shape = lambda x: jax.ShapeDtypeStruct((task.batch_size, *x.shape[1:]), x.dtype)
  return jax.tree.map(shape, row)


def _stacked(batch, seeds):
  """Returns the shapes of a batch with an axis of seeds in front, if there are any."""
  lead = (seeds,) if seeds else ()
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct((*lead, *s.shape), s.dtype), batch)


def _one_line(config, text) -> str:
  """What tracing the whole model on a batch refused, with the key of the field that it begins with."""
  text = build.line_of(text)
  if text.partition("=")[0] in config.model:
    return f"config.model.{text.removesuffix('.')}; its inputs are those of config.task.name={config.task.name!r}."
  return f"config.model does not fit together: {text}"


def _fits(config, abstract, batch, accumulate, model):
  """Refuses what this machine cannot hold, before anything is allocated.

  Counted are the state with its gradients, the state of one sampled text, and of the
  activations only the residual stream and the logits: what is refused cannot run, what
  passes may still be too much.
  """
  state = sum(math.prod(s.shape) * 4 for s in jax.tree.leaves(abstract))
  rows, tokens = batch["inputs"].shape[0] // accumulate, batch["inputs"].shape[1]
  width = config.model.depth * config.model.width + getattr(config.task, "vocab", 0)
  need = 1.4 * state + 2.0 * rows * tokens * width
  if config.sample.tokens:
    need += count.state_bytes(model)
  if jax.default_backend() == "cpu":
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  else:
    have = len(jax.devices()) * (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 2**62)
  if need > have:
    size, key = max(_sizes(config.task, "config.task") + _sizes(config.model, "config.model"))
    raise ConfigError(f"config.model: parameters, optimizer and activations need {need / 1e9:.4g} GB or more, "
                      f"{have / 1e9:.1f} GB are here; the largest size is {key}={shown(size)}: make it smaller.")


def _sizes(node, key):
  """Returns [(number, its key)] of all whole numbers below a node but seeds."""
  found = []
  for k in node:
    if hasattr(node[k], "keys"):
      found += _sizes(node[k], f"{key}.{k}")
    elif type(node[k]) is int and k != "seed":
      found.append((node[k], f"{key}.{k}"))
  return found
