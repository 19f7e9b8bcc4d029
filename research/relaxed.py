"""What tying the layers of a trained model costs at once, for the `measure` of an experiment."""

from layers.convert import growth
from layers.depth import sharing
from layers.stack import Run


def losses(program, state, share: str, ranks, limit: int) -> dict[str, float]:
  """Returns "relaxed/loss_rank_<r>": the loss of the model once its layers share matrices and keep rank r of their own.

  The tied layers are written out again, so that the program of the untied model runs them.

  Args:
    program, state: of one untied model.
    share: as `model.share`.
    ranks: to be tried.
    limit: validation batches to read.
  """
  runs = program.model.stack(parent=None).runs()
  layers = growth.layers_of(state.params["stack"], runs)
  tied_runs = [Run(*stretch) for stretch in sharing.stretches(share, len(layers))]
  kept = {k: v for k, v in state.params["stack"].items() if k not in {run.name for run in runs}}
  found = {}
  for rank in ranks:
    tied = growth.tied(layers, tied_runs, rank)
    full = {run.name: sharing.untie(tied[run.name], run.repeats) if run.repeats > 1 else tied[run.name]
            for run in tied_runs}
    stack = kept | growth.stack_of(growth.layers_of(full, tied_runs), runs)
    now = state.replace(params={**state.params, "stack": stack})
    found[f"relaxed/loss_rank_{rank}"] = program.measured(now, limit=limit)["eval/loss"]
  return found
