"""A post-mortem gives back every leaf, bit for bit, and runs nothing."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import checkpoint
from research import postmortem


def _tree():
  draw = np.random.default_rng(0)
  return {"state": {"w": jnp.asarray(draw.standard_normal((3, 4), np.float32)).at[1, 2].set(jnp.nan),
                    "b": jnp.asarray(draw.standard_normal(5), jnp.bfloat16), "none": jnp.zeros((0, 2)),
                    "opt": (jnp.int32(3), None)},
          "batch": {"tokens": draw.integers(0, 255, (2, 7)).astype(np.uint8)},
          "key": jax.random.key(1), "keys": jax.random.split(jax.random.key(2, impl="rbg"), 3)}


def test_every_leaf_comes_back_in_one_call(tmp_path):
  tree = _tree()
  postmortem.write_postmortem(tmp_path / "pm", tree)
  back = postmortem.read_postmortem(tmp_path / "pm", like=tree)
  assert checkpoint.params_sha256(back) == checkpoint.params_sha256(tree)
  assert jax.tree.structure(back) == jax.tree.structure(tree)
  flat = postmortem.read_postmortem(tmp_path / "pm")
  np.testing.assert_array_equal(flat["batch/tokens"], tree["batch"]["tokens"])


def test_another_tree_is_refused_by_the_name_of_the_leaf(tmp_path):
  postmortem.write_postmortem(tmp_path, _tree())
  with pytest.raises(ValueError, match="differ in the leaf 'ema'"):
    postmortem.read_postmortem(tmp_path, like=_tree() | {"ema": 0})


class _Bomb:
  def __reduce__(self):
    return (open, ("bomb-went-off", "w"))


def test_a_pickle_in_the_npz_is_refused_and_not_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  postmortem.write_postmortem(tmp_path, {"x": jnp.ones(2)})
  np.savez(tmp_path / "arrays.npz", **{"0": np.array([_Bomb()], object)})
  with pytest.raises(ValueError, match="no readable post-mortem.*allow_pickle=False"):
    postmortem.read_postmortem(tmp_path)
  (tmp_path / "arrays.npz").write_bytes(pickle.dumps(_Bomb()))
  with pytest.raises(ValueError, match="no readable post-mortem"):
    postmortem.read_postmortem(tmp_path)
  assert not (tmp_path / "bomb-went-off").exists()


@pytest.mark.parametrize("table", [[["x", "float32", [3], None]], [["x", "no_dtype", [2], None]], [["x"]], 3,
                                   [["x", "float32", [2], None], ["y", "float32", [2], None]]])
def test_a_table_that_does_not_fit_the_arrays_is_refused(tmp_path, table):
  postmortem.write_postmortem(tmp_path, {"x": jnp.ones(2)})
  (tmp_path / "leaves.json").write_text(json.dumps(table))
  with pytest.raises(ValueError, match="no readable post-mortem"):
    postmortem.read_postmortem(tmp_path)
