"""The same run on 1, 2, 4 and 8 devices: the same tokens, the same loss but for the order of sums (row 14)."""

import jax
import numpy as np
import pytest

from research import build
from research import sharding
from research.metrics import read
from tests.research import toy
from tests.research.run_test import _argv, _drive

MESHES = [dict(), dict(fsdp=8), dict(tensor=2), dict(fsdp=2, tensor=2), dict(data=1, fsdp=4, tensor=2)]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_layout_has_the_same_tokens_in_the_same_order(sizes):
  config = toy.config(**{f"mesh__{axis}": size for axis, size in sizes.items()})
  task, rows = build.task_of(config), sharding.of_batch(sharding.mesh_of(config))
  whole = jax.jit(lambda n: task.batch("train", n))
  split = jax.jit(lambda n: jax.lax.with_sharding_constraint(task.batch("train", n), rows))
  for step in (0, 7):
    jax.tree.map(np.testing.assert_array_equal, split(step), whole(step))


def _mesh(text):
  devices, *sizes = text.split()
  return [f"--fake_devices={devices}", *(f"--config.mesh.{size}" for size in sizes)]


# At a rate of 1e-2 Adam's division by tiny moments makes 4e-5 of the same rounding in 30 steps.
SHORT = ["--config.optim.steps=30", "--config.optim.lr=1e-3"]


def _compare(folder, layouts):
  plan = [dict(argv=_argv(folder / str(n), *SHORT, *_mesh(text)))
          for n, text in enumerate(layouts)]
  at = folder / "moved"
  cut = dict(lines=f"{at}/metrics.jsonl", after=6, signal="SIGTERM")
  plan += [dict(argv=_argv(at, *SHORT, *_mesh("8 fsdp=2 tensor=2")), **cut),
           dict(argv=_argv(at, *SHORT, *_mesh("2 fsdp=2")), **cut),
           dict(argv=_argv(at, *SHORT, *_mesh("8 tensor=4")))]
  results = _drive(plan, timeout=600)
  assert [r["code"] for r in results] == [0] * len(layouts) + [42, 42, 0], results
  losses = [[r["loss"] for r in read(path / "metrics.jsonl") if "loss" in r]
            for path in (*(folder / str(n) for n in range(len(layouts))), at)]
  assert len(losses[0]) == 30
  for text, got in zip([*layouts, "8 to 2 to 8"], losses, strict=True):
    np.testing.assert_allclose(got, losses[0], rtol=1e-5, err_msg=text)


def test_the_loss_is_that_of_one_device_also_when_devices_change_on_the_way(tmp_path):
  _compare(tmp_path, ["1"])


@pytest.mark.slow
def test_the_loss_is_that_of_one_device_in_every_layout(tmp_path):
  _compare(tmp_path, ["1", "2", "2 fsdp=2", "2 tensor=2", "4", "4 fsdp=4", "4 tensor=2", "8", "8 fsdp=8",
                      "8 fsdp=2 tensor=2", "8 tensor=8"])
