"""The step that broke a run, once more: what was not finite, and where first.

    replay.replay(workdir / "postmortem", program.make(config))
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research import build, leaves
from research import step as steps
from research.postmortem import read_postmortem


def replay(directory, program) -> dict:
  """Runs forward and backward of the saved step; of several seeds, the one that broke.

  Args:
    directory: of the post-mortem.
    program: as research/program.py makes it from the config of the run.

  Returns:
    {"loss", "grad_norm", "bad_params", "bad_gradients"}: two numbers, and the paths of the
    parameters and of the gradients that hold something not finite.

  Raises:
    ValueError: the post-mortem is damaged or belongs to another config.
  """
  found = read_postmortem(directory)
  names = [f"state/{name}" for name in leaves.named_leaves(program.abstract)]
  if missing := [name for name in names if name not in found]:
    raise ValueError(f"the post-mortem in {str(directory)!r} has no {missing[0]!r}: it is of another config.")
  state = jax.tree.unflatten(jax.tree.structure(program.abstract), [found[name] for name in names])
  if program.seeds:
    worst = int(np.argmax(state.streak))
    state = jax.tree.map(lambda x: x[worst], state)
  batch = {k.removeprefix("batch/"): v for k, v in found.items() if k.startswith("batch/")}
  config, task = program.config, program.task
  model = build.model_of(config, task, train=True)

  @jax.jit
  def once(state, batch):
    batch = task.batch("train", state.cursor) if task.on_device else batch
    grads, metrics, _ = steps.gradient(model, task, state, batch, config.optim.accumulate)
    return grads, metrics["loss"], optax.tree.norm(grads)

  grads, (loss, weight), norm = once(state, batch)
  return {"loss": float(loss / jnp.where(weight > 0, weight, 1.0)), "grad_norm": float(norm),
          "bad_params": _not_finite(state.params), "bad_gradients": _not_finite(grads)}


def _not_finite(tree) -> list[str]:
  return [name for name, leaf in leaves.named_leaves(tree).items() if not np.all(np.isfinite(leaf))]
