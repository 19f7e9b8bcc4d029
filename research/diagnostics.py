"""What every layer of a model does, by depth: six numbers per layer, of one validation batch.

With x_l the residual stream [token, channel] before layer l = 0..L-1, x_{l+1} after it:

    residual_variance   mean over tokens of Var_channels(x_{l+1})
    update_norm         mean over tokens of |x_{l+1} - x_l| / |x_l|
    gradient_norm       |d objective / d parameters of layer l|
    attention_entropy   mean over tokens and heads of the entropy of what a token reads, in nats;
                        nan where a layer is no softmax attention
    massive_activation  max |x_{l+1}| / median |x_{l+1}|, over tokens and channels
    skip_loss           loss with x_{l+1} = x_l minus the loss: what layer l is good for

Tokens are the real ones, not padding; the model is in eval mode. A profile is a
function of its own beside the training step, which does not know of it. A model that routes tokens to experts, or
past layers, has a profile of that as well, of the same forward pass: research/routing_profile.py.

References: Sun et al., "The Curse of Depth in Large Language Models", 2025
(variance, skipped layers); Zhai et al., "Stabilizing Transformer Training by
Preventing Attention Entropy Collapse", 2023; Sun et al., "Massive Activations
in Large Language Models", 2024 (maximum against median).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from layers import probe
from layers.stack import by_depth
from research import routing_profile, sharding
from research import step as steps
from research.errors import ConfigError

# Dims: L layers, N = B * T tokens, D model width.

NAMES = ("residual_variance", "update_norm", "gradient_norm", "attention_entropy",
         "massive_activation", "skip_loss")
TOKENS = 1024  # a profile reads about so many, in whole rows


def check(config, params) -> None:
  """Refuses to profile a model whose layers are not those of one residual stack.

  Raises:
    ConfigError: the switch is on and the model keeps no parameters in a submodule "stack".
  """
  if config.train.diagnostics and "stack" not in params:
    raise ConfigError(f"config.train.diagnostics=True needs a model with its layers in a submodule 'stack'; "
                      f"config.model.name={config.model.name!r} has {', '.join(sorted(params))}: set it to False.")


def profile(program):
  """Returns the jitted `(state, batch) -> of_model(...)`, with an axis of seeds in front if the program has seeds.

  `batch` is what `program.evaluate` takes; of it the first rows are read.
  """
  def of_state(state, batch):
    if program.task.on_device:
      batch = program.task.batch("validation", batch)
    each = lambda state: of_model(program.model, program.task, state.params, state.extra, _head(batch))
    return jax.vmap(each)(state) if program.seeds else each(state)
  whole = jax.sharding.NamedSharding(program.mesh, jax.sharding.PartitionSpec())
  return jax.jit(of_state, out_shardings=whole)


def of_model(model, task, params, extra, batch):
  """Returns the profile of one model on all rows of `batch`: {name: [L]}, and "routing" if it routes."""
  runs = model.stack(parent=None).runs()
  _, shown = model.apply({"params": params, **extra}, batch["inputs"], None, batch.get("segment_ids"),
                         mutable=[probe.DEPTH])
  shown = shown[probe.DEPTH]["stack"]
  routed = routing_profile.of_shown(shown, runs, batch, text=hasattr(task, "decode"))
  return {**_streams(shown, runs, batch),
          "gradient_norm": _gradient_norms(model, task, runs, params, extra, batch),
          "skip_loss": _skip_losses(model, task, runs, params, extra, batch),
          **({"routing": routed} if routed else {})}


def _head(batch):
  """Returns the first rows of a batch, about TOKENS tokens."""
  rows = max(1, TOKENS // batch["inputs"].shape[1])
  return jax.tree.map(lambda x: x[:rows], batch)


def _streams(shown, runs, batch):
  """Returns what the residual stream and the attention rows show in one forward pass."""
  ids_BT = batch.get("segment_ids")
  real_BT = jnp.ones(batch["inputs"].shape[:2], bool) if ids_BT is None else ids_BT >= 0
  real_N = real_BT.reshape(-1)
  mean = lambda values: jnp.mean(values.reshape(-1), where=real_N)
  flat = lambda node: node["stream_BTD"][0].reshape(-1, node["stream_BTD"][0].shape[-1])
  x_LND = by_depth(shown, runs, flat).astype(jnp.float32)
  before_LND = jnp.concatenate([flat(shown)[None].astype(jnp.float32), x_LND[:-1]])

  def of_layer(pair):
    before_ND, x_ND = pair
    size_ND, largest = jnp.abs(x_ND), jnp.max(jnp.abs(x_ND), where=real_N[:, None], initial=0.0)
    update_N = jnp.linalg.norm(x_ND - before_ND, axis=1) / jnp.linalg.norm(before_ND, axis=1)
    return {"residual_variance": mean(jnp.var(x_ND, axis=1)), "update_norm": mean(update_N),
            "massive_activation": largest / jnp.nanmedian(jnp.where(real_N[:, None], size_ND, jnp.nan))}

  def entropy(block):
    real = probe.seen(block, real_BT)
    shown = [(leaf, real[run]) for _, run, leaf in probe.find(block, "attention_entropy_BT")]
    if not shown:
      return jnp.full((), jnp.nan)
    # A run that no token reached has no mean.
    found, reached = zip(*[(jnp.mean(leaf, where=seen), jnp.any(seen)) for leaf, seen in shown])
    return jnp.mean(jnp.stack(found), where=jnp.stack(reached))

  return {**jax.lax.map(of_layer, (before_LND, x_LND)), "attention_entropy": by_depth(shown, runs, entropy)}


def _gradient_norms(model, task, runs, params, extra, batch):
  """Returns [L], norms of the gradient of what training minimises."""
  def objective(stack):
    total, weight, *_ = steps.forward(model, task, {**params, "stack": stack}, extra, batch)
    return total / weight
  grads = jax.grad(objective)(params["stack"])
  return by_depth(grads, runs, lambda layer: jnp.asarray(optax.tree.norm(layer)))


def _skip_losses(model, task, runs, params, extra, batch):
  """Returns [L], each from a forward pass of its own, one after the other to save memory."""
  def loss(layer):
    without = {**extra, "skip": {"stack": {"layer": layer}}}
    total, weight = steps.forward(model, task, params, without, batch)[2]["loss"]
    return total / weight
  # Layer -1 is none: the same program then gives both losses, so that useless layers score exactly 0.
  layers = sum(run.period * run.repeats for run in runs)
  losses = jax.lax.map(loss, jnp.arange(-1, layers))
  return losses[1:] - losses[0]


def records(program, measure, state, step: int) -> list[dict]:
  """Returns one record per model; `measure` (see `profile`) reads the first validation batch.

  A record is {"step", name: [L]}, and under "routing" the line of routing.jsonl of a model that routes.
  """
  first = 0
  if not program.task.on_device:
    rows = sharding.host_rows(program.mesh, program.config.task.batch_size)
    first = program.put(program.task.batch("validation", 0, rows))
  values = jax.tree.map(np.asarray, measure(state, first))
  models = [jax.tree.map(lambda x: x[i], values) for i in range(program.seeds)] or [values]
  return [{"step": step, **{k: of_one[k] for k in NAMES},
           **({"routing": routing_profile.record(of_one["routing"], step)} if "routing" in of_one else {})}
          for of_one in models]


def summary(record: dict) -> dict[str, float]:
  """Returns scalars of one record, "depth/<name>/first", last, mean, max, over layers that have a number."""
  found = {}
  for name in NAMES:
    finite = record[name][np.isfinite(record[name])].astype(np.float64)
    if finite.size:
      found |= {f"depth/{name}/first": finite[0].item(), f"depth/{name}/last": finite[-1].item(),
                f"depth/{name}/mean": finite.mean().item(), f"depth/{name}/max": finite.max().item()}
  return found
