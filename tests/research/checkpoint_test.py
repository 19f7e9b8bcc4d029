"""Checkpoints under damage: what comes back is what was saved, or nothing."""

import functools
import json
import os
import resource
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import checkpoint
from research import manifest
from research import saved_steps

IDENTITY = {"config_id": "toy", "data": {"length": 10, "order": (1, 2)}, "version": "0"}


def _mesh(devices):
  return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices],
                       axis_types=(jax.sharding.AxisType.Auto,))


def _state(seed, devices=1):
  """A state with every kind of leaf: sharded, replicated, bfloat16, nan, empty, scalar, typed keys."""
  draw = np.random.default_rng(seed)
  put = lambda x, *spec: jax.device_put(x, jax.sharding.NamedSharding(_mesh(devices), jax.P(*spec)))
  return {
      "params": {"w": put(draw.standard_normal((8, 32), np.float32), "data"), "none": put(np.zeros((0, 4), np.float32)),
                 "b": put(draw.standard_normal(5).astype(jnp.bfloat16)), "nan": put(np.array([np.nan, -0.0], np.float32))},
      "opt": (put(np.int32(seed)), None),
      "key": put(jax.random.key(seed)),
      "keys": put(jax.random.split(jax.random.key(seed, impl="rbg"), 8), "data"),
  }


def _abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _open(folder, **kwargs):
  return checkpoint.Checkpoints(folder, **{"identity": IDENTITY} | kwargs)


def _restored(folder, **kwargs):
  """(step, hash of the state) of what a new process would find."""
  saver = _open(folder, **kwargs)
  found = saver.restore(_abstract(_state(0)))
  saver.close()
  return found and (found[0], checkpoint.params_sha256(found[1]))


@functools.cache
def _hash(seed):
  return checkpoint.params_sha256(_state(seed))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A folder with steps 1 and 2, whose states have seeds 1 and 2."""
  folder = tmp_path_factory.mktemp("saved")
  saver = _open(folder)
  for seed in (1, 2):
    saver.save(seed, _state(seed))
  saver.close()
  assert saver.error is None
  return folder


@pytest.fixture
def ckpt(saved, tmp_path):
  shutil.copytree(saved, tmp_path / "ckpt")
  return tmp_path / "ckpt"


def _files(folder, step=2):
  return [f"{step}.json", *(f"{step}/{name}" for name in manifest.list_files(folder / str(step)))]


def _quarantined(folder):
  quarantine = folder / "quarantine"
  return sorted(os.listdir(quarantine)) if quarantine.exists() else []


def test_what_was_saved_on_eight_devices_comes_back_on_two(tmp_path):
  saver = _open(tmp_path)
  assert saver.restore(_abstract(_state(3))) is None and saver.latest() is None
  saver.save(7, _state(3, devices=8))
  step, state = saver.restore(_abstract(_state(0, devices=2)))
  assert step == saver.latest() == 7
  assert checkpoint.params_sha256(state) == _hash(3)
  like = _state(0, devices=2)
  assert jax.tree.structure(state) == jax.tree.structure(like)
  assert jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and x.sharding == y.sharding, state, like))
  saver.close()


def test_arrays_donated_after_save_returned_are_saved_as_they_were(tmp_path, monkeypatch):
  real, overwritten = manifest.write, threading.Event()
  monkeypatch.setattr(manifest, "write", lambda *args, **kwargs: (overwritten.wait(60), real(*args, **kwargs))[1])
  want = np.random.default_rng(0).standard_normal(4 << 20, np.float32)  # 16 MB: written long after save returned
  overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
  x = jax.device_put(want)
  saver = _open(tmp_path)
  saver.save(1, {"x": x})
  for _ in range(5):
    x = overwrite(x)
  x.block_until_ready()
  assert saver.latest() is None
  overwritten.set()
  _, state = saver.restore({"x": jax.ShapeDtypeStruct(want.shape, jnp.float32)})
  np.testing.assert_array_equal(state["x"], want)
  saver.close()


def test_training_does_not_wait_for_a_slow_disk(tmp_path, monkeypatch):
  real = manifest.write
  monkeypatch.setattr(manifest, "write", lambda *args, **kwargs: (time.sleep(1.0), real(*args, **kwargs))[1])
  saver = _open(tmp_path)
  start = time.monotonic()
  saver.save(1, _state(1))
  assert time.monotonic() - start < 0.7 and saver.latest() is None
  assert saver.wait() and saver.latest() == 1
  saver.close()


def test_old_steps_are_deleted_only_when_the_new_one_is_signed(tmp_path, monkeypatch):
  seen, real = [], manifest.write

  def spy(root, step, **kwargs):
    seen.append(saved_steps.existing(root))
    real(root, step, **kwargs)

  monkeypatch.setattr(manifest, "write", spy)
  saver = _open(tmp_path, keep=2)
  for step in (1, 2, 3, 3, 4):
    saver.save(step, _state(step))
  saver.close()
  assert seen == [[], [1], [1, 2], [2, 3]]
  assert sorted(os.listdir(tmp_path)) == ["3", "3.json", "4", "4.json"]


def test_a_flipped_bit_anywhere_is_seen_and_the_step_before_is_used(ckpt, saved):
  draw = np.random.default_rng(0)
  files = _files(ckpt)
  # The manifest first and the largest array file second, then any.
  chosen = [files[0], max(files[1:], key=lambda f: (ckpt / f).stat().st_size), *draw.choice(files, 18)]
  for n, name in enumerate(chosen):
    raw = bytearray((ckpt / name).read_bytes())
    raw[draw.integers(len(raw))] ^= 1 << draw.integers(8)
    (ckpt / name).write_bytes(raw)
    assert _restored(ckpt) == (1, _hash(1)), name
    assert len([q for q in _quarantined(ckpt) if not q.endswith(".json")]) == n + 1, name
    _put_back(saved, ckpt)


def _put_back(saved, ckpt):
  for step in (1, 2):
    shutil.rmtree(ckpt / str(step), ignore_errors=True)
    shutil.copytree(saved / str(step), ckpt / str(step))
    shutil.copy(saved / f"{step}.json", ckpt / f"{step}.json")


@pytest.mark.slow
def test_two_hundred_flipped_bits(ckpt, saved):
  for _ in range(10):
    test_a_flipped_bit_anywhere_is_seen_and_the_step_before_is_used(ckpt, saved)
    shutil.rmtree(ckpt / "quarantine")


def _truncate(path, _):
  path.write_bytes(path.read_bytes()[:-1])


def _empty(path, _):
  path.write_bytes(b"")


def _delete(path, _):
  path.unlink()


def _swap(path, other):
  kept = path.read_bytes()
  path.write_bytes(other.read_bytes())
  other.write_bytes(kept)


def _copy(path, other):
  path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("harm", [_truncate, _empty, _delete, _swap, _copy])
def test_harm_to_any_file_is_seen(ckpt, saved, harm):
  files, others = _files(ckpt), _files(ckpt, step=1)
  for n, name in enumerate(files):
    other = ckpt / (files[n - 1] if harm is _swap else others[n % len(others)])
    if (ckpt / name).read_bytes() == other.read_bytes():
      continue  # some metadata files are the same in every step: exchanging them is no harm
    harm(ckpt / name, other)
    with pytest.raises(manifest.Damaged):
      manifest.verify(ckpt, 2)
    # Sizes alone see what changes a size, at a thousandth of the cost.
    if harm in (_truncate, _empty, _delete):
      with pytest.raises(manifest.Damaged):
        manifest.verify(ckpt, 2, "sizes")
    _put_back(saved, ckpt)
  assert manifest.verify(ckpt, 2)["step"] == 2


def test_a_file_that_nobody_signed_is_seen_and_a_dot_file_is_not_ours(ckpt):
  (ckpt / "2" / ".nfs0001").write_bytes(b"left by a file server")
  assert _restored(ckpt) == (2, _hash(2))
  (ckpt / "2" / "d" / "more").write_bytes(b"")
  assert _restored(ckpt) == (1, _hash(1))
  assert _quarantined(ckpt) == ["2-extra-file", "2-extra-file.json"]


def test_no_good_step_left_is_an_error_and_not_a_fresh_start(ckpt):
  for step in (1, 2):
    (ckpt / f"{step}.json").write_bytes(b"{}")
  with pytest.raises(checkpoint.CheckpointError, match="nothing in .* verifies"):
    _restored(ckpt)


def test_a_deleted_manifest_is_damage_but_a_killed_save_is_not(ckpt):
  (ckpt / "2.json").unlink()
  (ckpt / "1.json").unlink()
  (ckpt / "1.pending").touch()  # what a kill before signing leaves
  with pytest.raises(checkpoint.CheckpointError):
    _restored(ckpt)
  assert _quarantined(ckpt) == ["2-no-manifest"]
  assert _restored(ckpt) is None
  saver = _open(ckpt)
  saver.save(5, _state(5))
  saver.close()
  assert sorted(os.listdir(ckpt)) == ["5", "5.json", "quarantine"]


def test_strays_are_not_steps(ckpt):
  (ckpt / "7").mkdir()
  (ckpt / "9.orbax-checkpoint-tmp").mkdir()
  (ckpt / "07").mkdir()
  (ckpt / "notes.json").write_text("{}")
  (ckpt / "latest").symlink_to("nowhere")
  assert _restored(ckpt) == (2, _hash(2))
  assert _quarantined(ckpt) == ["7-empty"]
  saver = _open(ckpt)
  (ckpt / "7").mkdir()
  saver.save(7, _state(7))
  saver.close()
  assert _restored(ckpt) == (7, _hash(7))


def test_only_an_empty_step_folder_is_a_fresh_start(tmp_path):
  (tmp_path / "7").mkdir()
  assert _restored(tmp_path) is None


def test_a_reader_beside_a_live_run_moves_nothing(ckpt):
  (ckpt / "2" / "_METADATA").unlink()
  assert _restored(ckpt, read_only=True) == (1, _hash(1))
  assert _quarantined(ckpt) == [] and (ckpt / "2").exists()


@pytest.mark.parametrize("key, theirs, ours", [("config_id", "toy", "other"), ("data", "'length': 10", "'length': 11")])
def test_a_step_of_another_run_or_other_data_is_refused_with_both_names(ckpt, key, theirs, ours):
  identity = IDENTITY | {"config_id": {"config_id": "other"}.get(key, "toy"),
                         "data": IDENTITY["data"] | ({"length": 11} if key == "data" else {})}
  with pytest.raises(checkpoint.CheckpointError, match=f"(?s){theirs}.*{ours}.*--workdir"):
    _restored(ckpt, identity=identity)
  saver = _open(ckpt, identity=identity)
  if key == "data":
    assert saver.restore(_abstract(_state(0)), allow_new_data=True)[0] == 2
  assert _quarantined(ckpt) == []
  saver.close()


def _with(path, leaf):
  return jax.tree_util.tree_map_with_path(
      lambda p, x: leaf if jax.tree_util.keystr(p, simple=True, separator="/") == path else x, _abstract(_state(0)))


@pytest.mark.parametrize("tree, message", [
    (_with("params/w", jax.ShapeDtypeStruct((8, 32), jnp.bfloat16)),
     r"params/w is float32 \[8, 32\] in the checkpoint of step 2 and bfloat16 \[8, 32\] in this run"),
    (_with("params/w", jax.ShapeDtypeStruct((8, 33), jnp.float32)), r"params/w is .*\[8, 32\].*\[8, 33\]"),
    (_with("opt/0", jax.ShapeDtypeStruct((), jnp.uint32)), "opt/0 is int32 .* uint32"),
    (_with("key", jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))), "key is key<fry> .* key<rbg>"),
    (_abstract(_state(0)) | {"ema": jax.ShapeDtypeStruct((), jnp.float32)}, "ema is absent .* float32"),
    ({"params": _abstract(_state(0))["params"]}, "key is key<fry> .* absent"),
], ids=["dtype", "shape", "step", "impl", "missing", "extra"])
def test_another_form_is_refused_before_orbax_can_cast(ckpt, tree, message):
  saver = _open(ckpt)
  with pytest.raises(checkpoint.CheckpointError, match=message):
    saver.restore(tree)
  saver.close()


def test_a_leaf_that_is_no_jax_array_is_refused_by_name(tmp_path):
  with pytest.raises(ValueError, match="opt/step is a int64"):
    _open(tmp_path).save(0, {"opt": {"step": np.int64(3)}})


def test_a_full_disk_costs_one_save_and_one_line(tmp_path, caplog):
  # The size limit of this process stands for a disk that is full after n bytes of a file.
  state = {"w": jnp.asarray(np.random.default_rng(0).standard_normal(50_000, np.float32))}
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  saver = _open(tmp_path)
  saver.save(1, state)
  assert saver.wait()
  largest = max((tmp_path / name).stat().st_size for name in _files(tmp_path, step=1))
  assert largest > 150_000
  for limit in np.geomspace(1, 0.9 * largest, 30):
    caplog.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
    try:
      saver.save(3, state)
      assert not saver.wait() and saver.latest() == 1
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [r.levelname for r in caplog.records] == ["ERROR"] and "step 3 FAILED" in caplog.text
    assert manifest.verify(tmp_path, 1) and not (tmp_path / "3").exists()
  saver.save(3, state)
  assert saver.wait()
  saver.close()
  assert manifest.verify(tmp_path, 3)
  assert sorted(os.listdir(tmp_path)) == ["1", "1.json", "3", "3.json"]


def _sign(ckpt, **changes):
  """Signs a hostile manifest correctly: the attacker knows the format."""
  body = json.loads((ckpt / "2.json").read_bytes()) | changes
  del body["sha256"]
  body["sha256"] = manifest.hashlib.sha256(manifest.canonical(body)).hexdigest()
  (ckpt / "2.json").write_bytes(manifest.canonical(body))


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "d/../../x", ".hidden", "a\0b", "x" * 10_000, "d//x", "a b", ""])
def test_hostile_names_are_refused_by_form(ckpt, name):
  _sign(ckpt, files={name: [1, "0" * 64]})
  with pytest.raises(manifest.Damaged, match="bad-name"):
    manifest.verify(ckpt, 2)


@pytest.mark.parametrize("change", [{"step": 3}, {"files": []}, {"files": {"d": 1}}, {"files": {"d": [1, 2]}},
                                    {"tree": {"w": [3, 4]}}, {"tree": None}, {"identity": 1}])
def test_a_signed_manifest_of_the_wrong_form_is_refused(ckpt, change):
  _sign(ckpt, **change)
  with pytest.raises(manifest.Damaged, match="bad-manifest"):
    manifest.verify(ckpt, 2)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b"\xff\xfe", b"[]", b"null",
                                  b"{}", b" " * (manifest.MAX_BYTES + 1)],
                         ids=["lists", "dicts", "digits", "not_utf8", "list", "null", "bare", "huge"])
def test_hostile_json_is_refused_within_a_second(ckpt, text):
  (ckpt / "2.json").write_bytes(text)
  start = time.monotonic()
  with pytest.raises(manifest.Damaged, match="bad-manifest"):
    manifest.verify(ckpt, 2)
  assert time.monotonic() - start < 1


def test_symlinks_are_refused(ckpt, saved, tmp_path):
  largest = max(_files(ckpt)[1:], key=lambda f: (ckpt / f).stat().st_size)
  cases = {largest: saved / largest, "2/d": saved / "2" / "d", "2": saved / "2", "2.json": saved / "2.json"}
  for name, target in cases.items():
    path = ckpt / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)
    assert _restored(ckpt) == (1, _hash(1)), name
    _put_back(saved, ckpt)
  assert manifest.verify(saved, 2)


def test_the_hash_of_parameters_sees_names_dtypes_shapes_and_bits():
  x = np.arange(6, dtype=np.float32)
  trees = [{"a": x}, {"b": x}, {"a": x.reshape(2, 3)}, {"a": x.view(np.int32)}, {"a": np.nextafter(x, 9)}, {"a": x[:5]},
           {"a": {"b": x}}]
  assert len({checkpoint.params_sha256(tree) for tree in trees}) == len(trees)
  assert checkpoint.params_sha256({"a": jnp.asarray(x)}) == checkpoint.params_sha256(trees[0])
  assert checkpoint.params_sha256({"b": 1 * x, "a": x}) == checkpoint.params_sha256({"a": x, "b": x})
