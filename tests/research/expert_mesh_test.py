"""config.mesh.expert: experts spread over devices train as on one, and a checkpoint moves between sizes."""

import functools

import jax
import numpy as np
import pytest

from research import checkpoint, find, leaves, runs
from research import program as programs
from research.errors import ConfigError
from tests.research import toy

CHANNEL = {"model.channel.name": "moe.MoE", "model.channel.experts": 4, "model.channel.dispatch": "expert_parallel",
           "model.channel.capacity_factor": 4.0, "model.channel.router.name": "gshard.GShard", "model.dropout": 0.0}


@functools.cache
def _program(dispatch="expert_parallel", **mesh):
  more = {f"mesh.{axis}": size for axis, size in mesh.items()}
  given = CHANNEL | {"model.channel.dispatch": dispatch} | more
  return programs.make(toy.config(**{k.replace(".", "__"): v for k, v in given.items()}))


@functools.cache
def _trained(dispatch="expert_parallel", **mesh):
  """Returns the state after three steps; buffers hold every token, so that none is dropped."""
  program = _program(dispatch, **mesh)
  state, step = program.start(3)
  for _ in range(3):
    state, _ = step(state, None)
  return state


@pytest.mark.parametrize("mesh", [dict(expert=2), dict(expert=4, fsdp=2), dict(expert=2, tensor=2, data=2)], ids=str)
def test_experts_over_devices_train_as_every_expert_on_every_token(mesh):
  want, got = _trained("dense"), _trained(**mesh)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got.params, want.params)


def test_kernels_lie_with_their_experts():
  kernel = _trained(expert=4, fsdp=2).params["stack"]["layers_0_to_0"]["block_0"]["channel"]["experts_up"]["kernel"]
  assert tuple(kernel.sharding.spec)[:2] == ("expert", "fsdp")
  assert kernel.addressable_shards[0].data.shape == (1, kernel.shape[1] // 2, kernel.shape[2])


def test_a_step_sends_tokens_twice_forward_and_twice_backward():
  program = _program(expert=2)
  text = program.step.lower(program.abstract, None).compile().as_text()
  assert text.count(" all-to-all(") == 4


def test_a_checkpoint_moves_to_another_number_of_devices_bit_for_bit(tmp_path):
  old, new = _program(expert=2), _program(expert=4, fsdp=2)
  checkpoint.write(tmp_path, runs.identity_of(old, 3), 3, _trained(expert=2))
  step, state = checkpoint.newest(tmp_path, runs.identity_of(new, 3), new.abstract)
  assert step == 3
  saved = leaves.named_leaves(_trained(expert=2))
  for path, leaf in leaves.named_leaves(state).items():
    assert leaf.sharding.mesh.shape["expert"] == 4
    np.testing.assert_array_equal(leaves.to_host(leaf), leaves.to_host(saved[path]), err_msg=path)


@pytest.mark.parametrize("router", find.names("router"))
def test_any_router_is_one_field_away(router):
  program = programs.make(toy.config(model__channel__name="moe.MoE", model__channel__router__name=router))
  params = program.abstract.params["stack"]["layers_0_to_0"]["block_0"]["channel"]
  assert ("router" in params) == (router != "hash_routing.HashRouting")  # the only one that learns nothing


def test_experts_that_the_mesh_does_not_divide_are_refused():
  config = toy.config(**{k.replace(".", "__"): v for k, v in CHANNEL.items()}, mesh__expert=8)
  with pytest.raises(ConfigError, match=r"experts=4 must be a multiple of the 8 devices of mesh axis 'expert'"):
    programs.make(config)
