"""Rivals of the bench: asked and answered by files, checked before they are believed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import bench
from pallas_kernels.chunk_recurrence import chunk_recurrence
from pallas_kernels.inputs import Arrays
from pallas_kernels.peers import protocol, start

RULE = "scalar delta"


@jax.jit
def _gradients(inputs, do, error):
  o, pull = jax.vjp(lambda a: chunk_recurrence(*Arrays(**a), backend="xla")[0], inputs)
  return o * (1 + error).astype(o.dtype), pull(do)[0]


def _rival(error):
  """A rival that is our own XLA path, its output off by a factor."""
  def prepare(arrays, rule, dtype):
    assert rule == RULE
    inputs = {n: jnp.asarray(x, "float32" if n in ("g", "beta") else dtype) for n, x in arrays.items()}
    do = inputs.pop("do")
    give = lambda x: np.asarray(x, np.float32)
    return dict(train=lambda values=False: jax.tree.map(give, _gradients(inputs, do, np.float32(error))))

  return prepare


@pytest.mark.parametrize("error, ok", [(0.0, True), (0.1, False)])
def test_a_rival_is_checked_and_timed(tmp_path, error, ok):
  shape = (1, 16, 1, 8, "float32")
  arrays = start.write_request(tmp_path, [shape], 2, [RULE])
  protocol.serve("a device", _rival(error), tmp_path)
  answer = start.read_answer(tmp_path, arrays, bench._reference_values)
  assert answer["device"] == "a device"
  (row,), (timing,) = answer["check"], answer["timings"]
  assert row["ok"] is ok and (0 < row["o"] < 0.02) is ok
  assert (timing["rule"], timing["mode"], tuple(timing["shape"])) == (RULE, "train", shape) and timing["ms"] > 0


def test_a_rival_that_is_not_installed_is_named_with_the_reason(monkeypatch, capsys):
  monkeypatch.setattr(start, "RIVALS", {"nobody": "no_such_module"})
  (answer,) = start.measure("", [], 1, bench._reference_values, {})
  assert "No module named" in answer["error"]
  assert "nobody: not measured" in capsys.readouterr().out


@pytest.mark.parametrize("rule, names", [("none", "qkv"), ("scalar", "qkvg"), ("vector delta", [*"qkvg", "beta"])])
def test_drawn_arrays_fit_the_rule(rule, names):
  arrays = protocol.draw(rule, 1, 4, 2, 3)
  assert set(arrays) == {*names, "do"}
  np.testing.assert_allclose(np.linalg.norm(arrays["k"], axis=-1), 1, rtol=1e-6)
  assert arrays.get("g", np.zeros(1)).max() <= 0
