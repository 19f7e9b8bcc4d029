"""Optional dashboards beside metrics.jsonl: each is a function that returns `write(record)` and `close()`.

Their libraries are imported only here, only when asked for.
"""

import importlib.util
import math
import pathlib


def tensorboard(directory, resume_step: int | None = None):
  """Event files for TensorBoard; events past `resume_step` of an earlier run are hidden.

  Raises:
    ValueError: tensorboardX is not installed.
  """
  _require("tensorboardX", "tensorboard", "logs")
  import tensorboardX
  writer = tensorboardX.SummaryWriter(str(directory), purge_step=None if resume_step is None else resume_step + 1)

  def write(record):
    for name, value in scalars(record).items():
      writer.add_scalar(name, value, record["step"])
    writer.flush()

  return write, writer.close


def wandb(directory, run_id: str, config: dict):
  """A Weights & Biases run; the same `run_id` continues it.

  Raises:
    ValueError: wandb is not installed.
  """
  _require("wandb", "wandb", "wandb")
  import wandb as library
  pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
  run = library.init(project="strata", id=run_id, resume="allow", dir=str(directory), config=config)

  def write(record):
    run.log(scalars(record), step=record["step"])

  return write, run.finish


def scalars(record: dict) -> dict[str, float]:
  """The finite numbers of a record that are not its step; a header line has no step and gives none."""
  if "step" not in record:
    return {}
  return {name: float(value) for name, value in record.items()
          if name != "step" and not isinstance(value, (bool, str)) and getattr(value, "ndim", 0) == 0
          and hasattr(value, "__float__") and math.isfinite(value)}


def _require(module, log, extra):
  if importlib.util.find_spec(module) is None:
    raise ValueError(f"--log={log} needs {module}, which is not installed: pip install -e '.[{extra}]'")
