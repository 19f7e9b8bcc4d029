"""What cutting the gated units of a trained model into experts costs at once, for the `measure` of an experiment."""

import jax
import jax.numpy as jnp

from layers.convert import factor_ffn, growth as stacks
from research import build, config as configs, growth


def losses(program, state, experts: int, choices, limit: int) -> dict[str, float]:
  """Returns "factored/loss_top_<k>": the loss of the model when a router takes k experts of each unit, untrained.

  Args:
    program, state: of one model whose channel is layers/channel/glu.py.
    experts: E, into which each unit is cut.
    choices: values of k; the router is the same for all.
    limit: validation batches to read.
  """
  found = {}
  for k in choices:
    config = program.config.copy_and_resolve_references()
    channel = {"name": growth.FACTORED, "experts": experts, "top_k": k}
    configs.override(config, {f"model.channel.{key}": value for key, value in channel.items()})
    model = build.model_of(config, program.task, train=False)
    row = jnp.zeros((1, *program.batch["inputs"].shape[1:]), program.batch["inputs"].dtype)
    fresh = jax.jit(model.init)(jax.random.key(0), row)
    runs = model.stack(parent=None).runs()
    old, new = (stacks.layers_of(params["stack"], runs) for params in (state.params, fresh["params"]))
    cut = stacks.stack_of(list(map(factor_ffn.cut, old, new)), runs)
    params = {**state.params, "stack": {**state.params["stack"], **cut}}
    teacher = factor_ffn.teacher_of(params, fresh[factor_ffn.TEACHER])
    now = state.replace(params=params, extra={**state.extra, factor_ffn.TEACHER: teacher})
    found[f"factored/loss_top_{k}"] = program._replace(model=model).measured(now, limit=limit)["eval/loss"]
  return found
