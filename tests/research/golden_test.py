"""What must not drift: the text of every config and the tree of its parameters (row 17)."""

import json
import math
import os
import pathlib
import time

import jax
import pytest

from research import build
from research import config as configs
from research import leaves

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CASES = [(name, preset) for name in configs.experiment_names() for preset in configs.load_file(name).PRESETS]


TREES = {}  # presets of an experiment often differ in steps alone: what decides the parameters is traced once


def _tree(config):
  """Returns {path: [shape, dtype]} of the parameters; nothing is computed, whatever the scale."""
  asked = config.task.to_json(sort_keys=True) + config.model.to_json(sort_keys=True)
  if asked not in TREES:
    TREES[asked] = _traced(config)
  return TREES[asked]


def _traced(config):
  task = build.task_of(config)
  if config.task.name.startswith("images."):
    config.task.dataset = "digits"  # the paper's data need not be here; the first layer shows it
    task = build.task_of(config)
  tokens = jax.eval_shape(lambda: task.batch("train", 0)["inputs"]) if task.on_device else (
      task.batch("train", 0, slice(0, 1))["inputs"])
  model = build.model_of(config, task, train=True)
  x = jax.ShapeDtypeStruct((1, *tokens.shape[1:]), tokens.dtype)
  params = jax.eval_shape(model.init, {"params": jax.random.key(0), "dropout": jax.random.key(0)}, x)["params"]
  return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves.named_leaves(params).items()}


@pytest.mark.parametrize("name, preset", CASES)
def test_config_and_parameters_are_those_on_record(name, preset):
  config = configs.load(f"{name}:{preset}")[2]
  text = json.loads(configs.text_of(config))
  begun = time.process_time()
  tree = _tree(config)
  seconds = time.process_time() - begun
  count = sum(math.prod(shape) for shape, _ in tree.values())
  found = {"config": text, "count": count, "parameters": tree}
  path = GOLDEN / f"{name}_{preset}.json"
  if os.environ.get("STRATA_UPDATE_GOLDEN"):
    GOLDEN.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
  assert path.is_file() and json.loads(path.read_text()) == found, (
      f"{path.name} is not what {name}:{preset} makes now; if that is meant, run this test with "
      "STRATA_UPDATE_GOLDEN=1 and commit the file.")
  assert seconds < 5
