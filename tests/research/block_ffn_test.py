"""Chunk sparsity as experiments/block_ffn.py counts it, on gates that are written down."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np

from layers.routing import Routing
from research import config as configs


@dataclasses.dataclass(frozen=True)
class _Task:
  batch_size: int = 1

  def batch(self, split, step, rows):
    return {"inputs": None}


def _measured(gates_LNE, reported):
  """Returns what `measure` finds where these are the gates of all layers, and `reported` the sparsity they show."""
  tree = lambda leaf: {"stack": {"scan_0_to_1": {"block_0": {"channel": leaf}}}}
  sown = {"intermediates": tree({"router": {"__call__": (Routing(gates_LNE, None, {}, {}),)}}),
          "metrics": tree({"sparsity": (jnp.asarray(reported),)})}
  program = types.SimpleNamespace(config=types.SimpleNamespace(task=types.SimpleNamespace(tokens=16)), task=_Task(),
                                  model=types.SimpleNamespace(apply=lambda *args, **kwargs: (None, sown)))
  return configs.load_file("block_ffn").measure(program, types.SimpleNamespace(params={}, extra={}))


def test_chunk_sparsity_is_the_share_of_experts_that_no_token_of_a_chunk_uses():
  gates_LNE = np.zeros((2, 32, 4), np.float32)
  gates_LNE[:, :, 0] = 0.5  # every token of both layers
  gates_LNE[0, ::16, 1] = 0.1  # one token of each 16
  gates_LNE[1, 3, 2] = 2.0  # one token of one chunk
  found = _measured(jnp.asarray(gates_LNE), [1 - (32 + 2) / 128, 1 - (32 + 1) / 128])
  assert found["block/one_token_gap"] < 1e-7
  # Of the 16 places (layer, chunk of 16, expert), 4 + 2 + 1 are used.
  np.testing.assert_allclose(found["block/cls_16"], 1 - 7 / 16, rtol=1e-6)
  assert found["block/rise"] < 0


def test_a_router_that_reports_another_sparsity_is_found_out():
  found = _measured(jnp.ones((2, 32, 4)), [0.0, 0.5])
  np.testing.assert_allclose([found["block/one_token_gap"], found["block/cls_16"], found["block/rise"]], [0.25, 0.0, 0.0])
