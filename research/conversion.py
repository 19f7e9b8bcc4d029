"""What a trained model becomes under the exact conversions of layers/convert, with the config that builds it.

    to_rms           Pre-LN to Pre-RMSNorm
    pre_crms_norm    Pre-LN to Pre-CRMSNorm, one feature narrower
    fused            norms that evaluation knows as affine maps, into the maps that read them

Each is a chain of passes. A pass takes parameters to parameters and says, as overrides
of the config, which model they are of; kernel transforms and factors of the placement go first.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from layers import stream_map as streams
from layers.convert.absorb_scale import absorb_scale
from layers.convert.fold_affine import fold_affine
from layers.convert.fuse_affine import fuse_affine
from layers.convert.materialise import materialise
from layers.convert.to_crms import to_crms
from layers.convert.to_rms import to_rms
from research import build, find
from research import config as configs
from research import step as steps
from research.errors import ConfigError, nearest, shown

CHAINS = {
    "to_rms": ("materialise", "absorb_scale", "fold_affine", "to_rms"),
    "pre_crms_norm": ("materialise", "absorb_scale", "fold_affine", "to_crms"),
    "fused": ("materialise", "absorb_scale", "fuse_affine"),
}
ON_VARIABLES = {"materialise": materialise, "fuse_affine": fuse_affine}
ON_PARAMS = {"absorb_scale": absorb_scale, "fold_affine": fold_affine, "to_rms": to_rms, "to_crms": to_crms}
TIMED = 9  # forward passes whose median is a time


def convert(config, task, variables, to: str):
  """Returns (config of the converted model, its parameters, what was overridden).

  Args:
    config: of the trained model, with every setting.
    task: of that config.
    variables: {"params"} and the other collections of the model.
    to: a name of CHAINS.

  Raises:
    ConfigError: no such conversion, or the model is not one that it keeps the function of.
  """
  if to not in CHAINS:
    raise ConfigError(f"--to={shown(to)} is no conversion; {nearest(to, CHAINS)}")
  config, variables, changed = config.copy_and_resolve_references(), dict(variables), {}
  for name in CHAINS[to]:
    model = build.model_of(config, task, train=False)
    try:
      stream = streams.stream_map(model)
      run = ON_PARAMS.get(name)
      run = functools.partial(run, stream=stream) if run else None
      # One program: op by op, each shape would be compiled by itself.
      convert = jax.jit((lambda v: run(v["params"])) if run else lambda v: ON_VARIABLES[name](v, stream))
      variables["params"] = convert(variables)
    except ValueError as error:
      raise ConfigError(f"--to={to}: {build.line_of(str(error))}") from error
    overrides = _overrides(name, config, stream, variables["params"])
    configs.override(config, overrides)
    changed |= overrides
  # What a later pass took out of the config (the gain of a norm, say) is no override of the first.
  there = lambda key: streams.at(config, key.split(".")) is not None
  return config, variables["params"], {key: value for key, value in changed.items() if there(key)}


def _overrides(name, config, stream, params) -> dict:
  """Returns what a pass changes in the config: dotted key -> value."""
  node = config.model
  norm, layers = stream.norm, [*dict.fromkeys(node.pattern)]
  if node.get("channel") is not None and node.channel.name != "none":
    layers.append("channel")
  biases = {f"model.{layer}.bias": True for layer in layers} | {"model.head_bias": True}
  if name == "materialise":
    return {f"model.{layer}.kernel_transform": "" for layer in layers if node[layer].get("kernel_transform", "")}
  if name == "absorb_scale":
    return {"model.placement": "pre"} if any(s != 1 for site in stream.readers for s in site.scale) else {}
  if name == "fuse_affine":
    return {"model.placement": "none"} | biases
  if name == "fold_affine":
    had = {switch: getattr(norm, switch) for switch in ("gain", "bias") if hasattr(norm, switch)}
    return {f"model.norm.{switch}": False for switch in had} | (biases if had.get("bias") else {})
  if name == "to_rms":
    return {"model.norm.name": "rms_norm.RMSNorm", "model.norm.eps": norm.eps}
  hidden = [streams.at(params, site.path)["kernel"].shape[-2] for site in stream.writers if site.path[-2:-1] == ("channel",)]
  sizes = {"model.width": node.width - 1}
  if hidden and "hidden" in find.fields(find.find("channel", node.channel.name, "config.model.channel.name")):
    sizes["model.channel.hidden"] = hidden[0]  # it would follow the width
  return sizes | {"model.norm.name": "crms_norm.CRMSNorm", "model.norm.eps": norm.eps}


def kept(abstract, tree):
  """Returns the leaves of a collection that the converted model still has."""
  return jax.tree_util.tree_map_with_path(lambda path, _: streams.at(tree, [entry.key for entry in path]), abstract)


def compared(task, batch, before, after) -> dict[str, float]:
  """Returns how far two models are apart on a batch, and the milliseconds of a forward pass of each.

  Args:
    task: of both.
    batch: one validation batch.
    before, after: (unbound model, variables) of the original and of the converted one.

  Returns:
    "logits", the largest difference over the largest logit; "loss", the difference;
    "before_ms" and "after_ms", medians of passes in turn.
  """
  calls, losses, logits = [], [], []
  for model, variables in (before, after):
    read = jax.jit(lambda v, model=model: model.apply(v, batch["inputs"], None, batch.get("segment_ids"))[0])
    judge = jax.jit(lambda v, model=model: _loss(model, task, v, batch))
    logits.append(np.asarray(read(variables), np.float64))
    losses.append(float(judge(variables)))
    calls.append(functools.partial(read, variables))
  spent = [[], []]
  for _ in range(TIMED):
    for times, call in zip(spent, calls):
      begun = time.perf_counter()
      jax.block_until_ready(call())
      times.append(1e3 * (time.perf_counter() - begun))
  return {"logits": float(np.max(np.abs(logits[1] - logits[0])) / np.max(np.abs(logits[0]))),
          "loss": abs(losses[1] - losses[0]),
          "before_ms": statistics.median(spent[0]), "after_ms": statistics.median(spent[1])}


def _loss(model, task, variables, batch):
  extra = {k: v for k, v in variables.items() if k != "params"}
  total, weight = steps.forward(model, task, variables["params"], extra, batch)[2]["loss"]
  return total / weight


def measured(program, state, to: str) -> dict[str, float]:
  """Returns `compared` of a program's model and its conversion as "<to>/...", for an experiment's `measure`."""
  variables = {"params": state.params, **state.extra}
  config, params, _ = convert(program.config, program.task, variables, to)
  model = build.model_of(config, program.task, train=False)
  inputs = jax.ShapeDtypeStruct((1, *program.batch["inputs"].shape[1:]), program.batch["inputs"].dtype)
  extra = dict(jax.eval_shape(model.init, jax.random.key(0), inputs))
  converted = {"params": params, **{k: kept(v, state.extra[k]) for k, v in extra.items() if k in state.extra}}
  batch = jax.tree.map(jnp.asarray, program.task.batch("validation", 0))
  found = compared(program.task, batch, (program.model, variables), (model, converted))
  return {f"{to}/{name}": value for name, value in found.items()}
