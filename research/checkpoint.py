"""Checkpoints that are either right or refused: orbax writes the arrays, a signed manifest makes a step exist.

Saving returns after the copy to the host; a thread waits for orbax, hashes and signs the files, and only then
deletes old steps. Plain orbax restores flipped bits and casts dtypes without a word, so before it may read, every
file is verified (research/manifest.py) and every shape and dtype compared. Damaged steps are set aside
(research/saved_steps.py) and the newest good one is used. Only this file knows orbax.
"""

import hashlib
import pathlib
import sys
import threading

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from research import leaves
from research import manifest
from research import quiet
from research import saved_steps

_NEVER, _ALL_BAD = -1, -2


class CheckpointError(Exception):
  """A checkpoint that this run must not continue from, with the reason and the way out."""


class Checkpoints:
  """The checkpoints of one run.

  Args:
    directory: folder of the steps; made on the first save.
    identity: JSON-able facts about the run; "config_id" and "data" must agree on restore.
    keep: how many of the newest steps stay.
    verify: "full" hashes every file before a restore, "sizes" only compares names and sizes.
    read_only: never move a damaged step (evaluation beside a run that is still training).

  Attributes:
    error: why the last save failed, or None.
  """

  def __init__(self, directory, *, identity: dict, keep: int = 2, verify: str = "full", read_only: bool = False):
    if keep < 1 or verify not in ("full", "sizes"):
      raise ValueError(f"keep={keep} must be >= 1 and verify={verify!r} 'full' or 'sizes'.")
    self._root = pathlib.Path(directory).resolve()
    self._identity = manifest.as_read_back(identity)
    self._keep, self._verify, self._read_only = keep, verify, read_only
    self._thread = None
    self._cleaned = False
    self._saved = set(saved_steps.existing(self._root))
    self.error = None
    quiet.silence_orbax()
    self._orbax = _new_orbax()

  def save(self, step: int, state) -> None:
    """Starts saving; returns when the arrays are on the host and may be donated.

    A failed write is logged and leaves older steps as they were. A step that exists is left alone.

    Raises:
      ValueError: a leaf is not a jax.Array.
    """
    named = leaves.named_leaves(state)
    for path, leaf in named.items():
      if not isinstance(leaf, jax.Array):
        raise ValueError(f"{path} is a {type(leaf).__name__}, not a jax.Array; wrap it in jnp.asarray.")
    self.wait()
    if step in self._saved:
      return
    self._saved.add(step)
    tree = {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in named.items()}
    try:
      if jax.process_index() == 0:
        if not self._cleaned:
          saved_steps.clean(self._root)
          self._cleaned = True
        saved_steps.begin(self._root, step)
      # Orbax refuses arrays of size 0; the tree in the manifest is enough to make them again.
      self._orbax.save(self._root / str(step), {path: leaves.words(x) for path, x in named.items() if x.size})
      self._thread = threading.Thread(target=self._finish, args=(step, tree), name="checkpoint")
      self._thread.start()
    except Exception as error:  # whatever the file system or orbax raised: the run goes on
      self._give_up(step, error)

  def wait(self) -> bool:
    """Waits for the save in progress; returns whether the last one succeeded."""
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    return self.error is None

  def close(self):
    """Waits, and frees orbax's threads."""
    self.wait()
    self._orbax.close()

  def latest(self) -> int | None:
    """The newest step that has a manifest, not yet verified."""
    return max(saved_steps.existing(self._root), default=None)

  def restore(self, abstract_state, *, allow_new_data: bool = False):
    """Returns (step, state) of the newest step that verifies, or None if there never was one.

    Args:
      abstract_state: pytree of jax.ShapeDtypeStruct with the shardings to restore onto.
      allow_new_data: accept a checkpoint that was trained on other data.

    Raises:
      CheckpointError: steps were there and none is left, or the newest one belongs to another run or form.
    """
    self.wait()
    step = self._agree_on_step()
    self._saved = set(saved_steps.existing(self._root))
    if step == _NEVER:
      return None
    if step == _ALL_BAD:
      raise CheckpointError(f"nothing in {str(self._root)!r} verifies (see quarantine/); try a new --workdir.")
    body = manifest.read(self._root, step)
    _check_identity(step, body["identity"], self._identity, allow_new_data)
    named = leaves.named_leaves(abstract_state)
    _check_tree(step, body["tree"], named)
    wanted = {path: leaves.stored(leaf) for path, leaf in named.items()}
    try:
      found = self._orbax.restore(self._root / str(step), {path: x for path, x in wanted.items() if x.size})
    except Exception as error:  # orbax raises many types
      raise CheckpointError(f"step {step} verifies ({self._verify}) but cannot be read: {_line(error)}") from error
    for path, leaf in named.items():
      if not leaf.size:
        found[path] = jnp.zeros(wanted[path].shape, wanted[path].dtype, device=wanted[path].sharding)
      if leaves.is_key(leaf):
        found[path] = jax.random.wrap_key_data(found[path], impl=leaves.key_impl(leaf))
    return step, jax.tree.unflatten(jax.tree.structure(abstract_state), [found[path] for path in named])

  def _agree_on_step(self):
    step = _NEVER
    if jax.process_index() == 0:
      good, damaged = saved_steps.newest_good(self._root, self._verify, read_only=self._read_only)
      step = good if good is not None else _ALL_BAD if damaged else _NEVER
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils  # slow to import, and only needed on several hosts
      step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    return step

  def _finish(self, step, tree):
    try:
      self._orbax.wait_until_finished()
      if jax.process_index() == 0:
        saved_steps.commit(self._root, step, identity=self._identity, tree=tree, keep=self._keep)
      self.error = None
    except Exception as error:  # as in save
      self._give_up(step, error)

  def _give_up(self, step, error):
    self.error = _line(error)
    self._saved.discard(step)
    logging.error("checkpoint of step %d FAILED, training goes on, older ones stay: %s", step, self.error)
    self._orbax = _new_orbax()
    if jax.process_index() == 0 and step not in saved_steps.existing(self._root):
      saved_steps.remove(self._root, step)


def newest(directory, identity: dict, abstract_state, *, allow_new_data: bool = False):
  """Returns (step, state) of the newest good step of a run, or None; changes nothing. Raises as `restore` does."""
  checkpoints = Checkpoints(directory, identity=identity, read_only=True)
  try:
    return checkpoints.restore(abstract_state, allow_new_data=allow_new_data)
  finally:
    checkpoints.close()


def write(directory, identity: dict, step: int, state) -> None:
  """Writes one checkpoint and waits for it.

  Raises:
    OSError: it could not be written.
  """
  checkpoints = Checkpoints(directory, identity=identity)
  checkpoints.save(step, state)
  checkpoints.close()
  if checkpoints.error:
    raise OSError(f"the checkpoint could not be written: {checkpoints.error}")


def params_sha256(params) -> str:
  """sha256 over the sorted leaf paths, dtypes, shapes and little-endian bytes of a tree."""
  total = hashlib.sha256()
  for path, leaf in sorted(leaves.named_leaves(params).items()):
    array = np.ascontiguousarray(leaves.to_host(leaf))
    total.update(f"{path} {leaf.dtype} {tuple(leaf.shape)}\n".encode())
    total.update((array if sys.byteorder == "little" else array.byteswap()).tobytes())
  return total.hexdigest()


def _check_identity(step, theirs, ours, allow_new_data):
  for key, what, allowed in (("config_id", "config", False), ("data", "data", allow_new_data)):
    if theirs.get(key) != ours.get(key) and not allowed:
      raise CheckpointError(f"step {step} belongs to {what} {theirs.get(key)!r:.200} and this run has "
                            f"{ours.get(key)!r:.200}; bring that {what} back or use a new --workdir.")


def _check_tree(step, theirs, named):
  ours = {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in named.items()}
  for path in sorted(theirs.keys() | ours.keys()):
    if theirs.get(path) != ours.get(path):
      there, here = (" ".join(map(str, tree.get(path, ["absent"])[::-1])) for tree in (theirs, ours))
      raise CheckpointError(f"{path} is {there} in the checkpoint of step {step} and {here} in this run; "
                            "use the dtype and sizes of the checkpoint or a new --workdir.")


def _new_orbax():
  # Directories made in the background would appear after a failed save was cleaned up.
  return ocp.StandardCheckpointer(async_options=ocp.AsyncOptions(create_directories_asynchronously=False))


def _line(error):
  return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
