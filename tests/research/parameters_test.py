"""Roles by name, and what follows from them: where a parameter lies and how it starts."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from layers.placement import placement
from research import config as configs
from research import initialize, parameters, program as programs, sharding
from research.defaults import DEFAULTS
from research.errors import ConfigError
from tests.research import toy


@functools.cache
def _shapes():
  """Parameters of a hybrid with a scan of three layers and one that stands alone."""
  config = configs.load("byte_lm:smoke")[2]
  configs.override(config, {
      "model.depth": 4, "model.pattern": ("attention", "attention", "attention", "mixer"),
      "task.name": "parity.Parity", "task.batch_size": 8})
  return programs.make(config).abstract.params


def _roles():
  flat = jax.tree_util.tree_leaves_with_path(_shapes())
  return {jax.tree_util.keystr(path, simple=True, separator="/"): (parameters.role(path, leaf), leaf)
          for path, leaf in flat}


def test_axes_of_a_language_model_are_told_by_name():
  found = {name: " ".join(role.axes) for name, (role, _) in _roles().items()}
  scan, alone = "stack/scan_0_to_2/block_0", "stack/layers_3_to_3/block_0"
  for name, axes in {
      "embedding/embedding": "vocab embed", "head/kernel": "embed vocab",
      f"{scan}/mixer/query/kernel": "layers embed heads channels",
      f"{scan}/mixer/out/kernel": "layers heads channels embed",
      f"{scan}/channel/gate/kernel": "layers embed hidden", f"{alone}/channel/down/kernel": "hidden embed",
      f"{scan}/mixer_pre_norm/scale": "layers scale0", f"{alone}/mixer/decay/kernel": "embed heads",
      f"{alone}/mixer/decay/bias": "bias0"}.items():
    assert found[name] == axes
  assert all(len(role.axes) == len(leaf.shape) for role, leaf in _roles().values())


def test_matrices_are_the_linear_maps():
  for name, (role, _) in _roles().items():
    assert role.is_matrix == name.endswith(("/kernel", "/embedding")), name
  role, leaf = _roles()["stack/scan_0_to_2/block_0/mixer/out/kernel"]
  assert role.fan_in(leaf.shape) == leaf.shape[1] * leaf.shape[2]


def _mesh(**sizes):
  config = toy.config(**{f"mesh__{k}": v for k, v in sizes.items()})
  return sharding.mesh_of(config)


@pytest.mark.parametrize("name, shape, split", [
    ("query", (6, 4, 5), ("fsdp", "tensor", None)), ("query", (6, 3, 5), ("fsdp", None, None)),
    ("query", (5, 4, 5), (None, "tensor", None)), ("out", (4, 5, 6), ("tensor", None, "fsdp")),
    ("up", (6, 8), ("fsdp", "tensor")),
    ("experts_up", (4, 6, 8), (None, "fsdp", "tensor")), ("head", (6, 7), ("fsdp", None))])
def test_axes_that_divide_are_split_and_the_others_stay_whole(name, shape, split):
  leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
  path = tuple(jax.tree_util.DictKey(k) for k in ("stack", name, "kernel"))
  spec = sharding.spec_of(parameters.role(path, leaf), shape, _mesh(fsdp=2, tensor=2))
  assert tuple(spec) == split


@pytest.mark.parametrize("sizes", [dict(fsdp=2, tensor=2), dict(fsdp=8), dict(tensor=4), dict()])
def test_the_mesh_takes_every_device(sizes):
  mesh = _mesh(**sizes)
  assert mesh.size == 8 and all(mesh.shape[axis] == size for axis, size in sizes.items())


@pytest.mark.parametrize("sizes", [dict(fsdp=3), dict(data=2), dict(fsdp=16), dict(sequence=2), dict(fsdp=0), dict(data=-1)])
def test_a_mesh_that_devices_cannot_make_is_refused(sizes):
  with pytest.raises(ConfigError, match="config.mesh"):
    _mesh(**sizes)


def _params(depth=4):
  leaf = lambda *shape: jnp.ones(shape)
  block = {name: {"kernel": leaf(depth, 4, 6)} for name in ("query", "value", "out", "up", "gate", "down")}
  return {"stack": {"scan_0_to_3": block | {"norm": {"scale": leaf(depth, 4)}}}, "head": {"kernel": leaf(4, 6)}}


def _start(params=None, place="pre", **init):
  init = ml_collections.ConfigDict({**DEFAULTS["init"], **init})
  return initialize.initialize(params or _params(), init, placement(place, 4), jax.random.key(0))


def test_deepnorm_scales_its_branches_by_the_published_gain():
  block = _start(place="deepnorm")["stack"]["scan_0_to_3"]
  for name, leaf in block.items():
    gain = (8 * 4) ** -0.25 if name in ("value", "out", "up", "gate", "down") else 1.0
    np.testing.assert_allclose(leaf.get("kernel", leaf.get("scale")), gain, rtol=1e-6)


def test_scaled_residuals_shrink_writers_by_the_root_of_twice_the_depth():
  block = _start(residual="scaled")["stack"]["scan_0_to_3"]
  np.testing.assert_allclose(block["out"]["kernel"], 8**-0.5, rtol=1e-6)
  np.testing.assert_allclose(block["query"]["kernel"], 1.0)


@pytest.mark.parametrize("kernel, std", [("normal", 0.5), ("xavier", (2 / 96) ** 0.5)])
def test_kernels_are_drawn_with_the_deviation_of_their_scheme(kernel, std):
  params = {"stack": {"layers_0_to_0": {"up": {"kernel": jnp.ones((32, 64))}}}, "head": {"kernel": jnp.ones((4, 6))}}
  got = _start(params, kernel=kernel, std=0.5)
  assert np.std(got["stack"]["layers_0_to_0"]["up"]["kernel"]) == pytest.approx(std, rel=0.05)
  np.testing.assert_array_equal(got["head"]["kernel"], 1.0)  # outside the stack layers choose


def test_a_draw_depends_on_its_path_alone():
  params = _params()
  fewer = {"stack": {"scan_0_to_3": {"up": params["stack"]["scan_0_to_3"]["up"]}}}
  all_, one = (_start(p, kernel="normal")["stack"]["scan_0_to_3"] for p in (params, fewer))
  np.testing.assert_array_equal(all_["up"]["kernel"], one["up"]["kernel"])
  assert np.any(all_["up"]["kernel"] != all_["gate"]["kernel"])
