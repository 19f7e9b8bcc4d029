"""One training step and one evaluation step, as pure functions to be jitted.

The objective of a batch is (sum of losses) / (sum of weights) plus whatever the
layers sowed into the collection "losses". A batch cut into microbatches gives
the same gradient: sums and weights are added up first, divided once.

Two collections of the layers' state are the step's to fill: "clock" gets the step
before the forward pass, "backward_state" what the backward pass wrote.
"""

import jax
import jax.numpy as jnp
import optax

from layers import backward_state, clock
from research.state import SOWN, TrainState

OWN = ("lr", "grad_norm", "update_norm", "param_norm")


def forward(model, task, params, extra, batch, key=None):
  """Returns (loss sum, weight, metrics as (sum, weight), new extra) of one batch.

  Sown losses count once per unit of weight, so that they survive division.
  """
  outputs, changed = _apply(model, params, extra, batch, key)
  (loss, weight), metrics = task.loss(outputs, batch)
  sown = sum(jnp.sum(x) for x in jax.tree.leaves(changed.get("losses", {})))
  metrics = {"loss": (loss, weight), **metrics, **_sown_metrics(changed.get("metrics", {}))}
  extra = {k: changed.get(k, extra[k]) for k in extra}
  return loss + sown * weight, weight, metrics, extra


def _apply(model, params, extra, batch, key):
  """Runs the model; without a key nothing random happens and no state is written."""
  segment_ids = batch.get("segment_ids")
  rngs = {} if key is None else {"dropout": key}
  mutable = [*SOWN[:2], *(extra if key is not None else ())]
  (outputs, _), changed = model.apply(
      {"params": params, **extra}, batch["inputs"], None, segment_ids, rngs=rngs, mutable=mutable)
  return outputs, changed


def _sown_metrics(tree):
  """Averages what the layers sowed under one name over layers: name -> (sum, count)."""
  found = {}
  for path, value in jax.tree_util.tree_leaves_with_path(tree):
    name = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1]
    total, count = found.get(name, (0.0, 0.0))
    found[name] = (total + jnp.sum(value, dtype=jnp.float32), count + value.size)
  return found


def gradient(model, task, state: TrainState, batch, accumulate: int):
  """Returns (gradient of the mean loss, metrics, new extra) over `accumulate` microbatches.

  The layers' state passes from one microbatch to the next, but for what backward passes
  write: each reads the old one, and their mean is the new one.
  """
  key = jax.random.fold_in(state.key, state.step)
  start = dict(state.extra)
  if clock.COLLECTION in start:
    start[clock.COLLECTION] = clock.set_to(start[clock.COLLECTION], state.step)

  def of_micro(extra, batch, key):
    written = {k: extra[k] for k in extra if k == backward_state.COLLECTION}
    def objective(params, written):
      total, weight, metrics, new = forward(model, task, params, {**extra, **written}, batch, key)
      return total, (weight, metrics, new)
    _, pull, (weight, metrics, extra) = jax.vjp(objective, state.params, written, has_aux=True)
    # Statistics of gradients are of the mean loss, whatever the weight of a batch.
    unit = accumulate * jnp.where(weight > 0, weight, 1.0) if written else jnp.ones_like(weight)
    grads, written = pull(1.0 / unit)
    if written:
      grads = jax.tree.map(lambda g: g * unit.astype(g.dtype), grads)
    return grads, weight, metrics, written, extra

  if accumulate == 1:
    grads, weight, metrics, written, extra = of_micro(start, batch, key)
  else:
    split = lambda x: x.reshape(accumulate, -1, *x.shape[1:])
    def body(carry, micro):
      extra, total = carry
      index, batch = micro
      *parts, extra = of_micro(extra, batch, jax.random.fold_in(key, index))
      return (extra, jax.tree.map(jnp.add, total, tuple(parts))), None
    micros = (jnp.arange(accumulate), jax.tree.map(split, batch))
    first = jax.tree.map(lambda x: x[0], micros)
    shapes = jax.eval_shape(lambda: of_micro(start, first[1], key)[:4])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (extra, (grads, weight, metrics, written)), _ = jax.lax.scan(body, (start, zeros), micros)
  for name in written:
    extra = {**extra, name: backward_state.advance(state.extra[name], written[name])}
  # A batch with no weight at all (everything masked) has gradient 0, not 0 / 0.
  scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
  return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), metrics, extra


def train_step(state: TrainState, batch, *, model, task, optimizer, schedule, accumulate,
               log_every, patience):
  """Returns the state after one update, or after none where a number was not finite.

  A refused step still counts and moves the data on; parameters, optimizer and
  the layers' own state stay exactly as they were. After `patience` refusals in a
  row every step is refused: the loop notices later, and wants to find what broke.
  """
  grads, metrics, extra = gradient(model, task, state, batch, accumulate)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  own = (jnp.asarray(schedule(state.step)), *map(optax.tree.norm, (grads, updates, state.params)))
  metrics |= {name: (value, jnp.ones(())) for name, value in zip(OWN, own)}
  loss, weight = metrics["loss"]
  finite = jnp.all(jnp.isfinite(jnp.stack([loss, weight, own[1], own[2]])))
  finite &= _all_finite(extra) & (state.streak < patience)

  keep = lambda new, old: jnp.where(finite, new, old)
  new = (optax.apply_updates(state.params, updates), opt_state, extra)
  old = (state.params, state.opt_state, state.extra)
  params, opt_state, extra = jax.tree.map(keep, new, old)
  return TrainState(
      step=state.step + 1, cursor=state.cursor + 1, params=params, extra=extra, opt_state=opt_state, key=state.key,
      skipped=state.skipped + ~finite,
      streak=jnp.where(finite, 0, state.streak + 1),
      sums=_add(state, metrics, finite, log_every))


def _all_finite(tree):
  """Whether every number of the layers' state is finite: one that is not would stay for good."""
  leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves])) if leaves else True


def _add(state, metrics, finite, log_every):
  """Adds this step's metrics to the sums, which start anew after every logging step."""
  started = jnp.where(state.step % log_every == 0, 0.0, 1.0)
  def add(name):
    pair = jnp.stack([jnp.asarray(x, jnp.float32) for x in metrics[name]])
    return started * state.sums[name] + jnp.where(finite, pair, 0.0)
  return {name: add(name) for name in state.sums}


def eval_step(state: TrainState, batch, *, model, task):
  """Returns metric -> [2], sum and weight, of one batch with the model in eval mode."""
  _, _, metrics, _ = forward(model, task, state.params, state.extra, batch)
  return {k: jnp.stack([jnp.asarray(x, jnp.float32) for x in v]) for k, v in metrics.items()}


def eval_forward(model, task, params, extra, batch):
  """Returns the loss sum of one batch in eval mode: what a forward pass computes."""
  return forward(model, task, params, extra, batch)[0]


def metric_names(model, task, state, batch) -> tuple[str, ...]:
  """Returns the names that a training step sums, found by tracing it; no computation."""
  key = jax.random.key(0)
  trace = lambda p, e, b: forward(model, task, p, e, b, key)[2]
  return (*jax.eval_shape(trace, state.params, state.extra, batch), *OWN)
