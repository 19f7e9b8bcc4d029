"""The folder of checkpoints: which steps exist, which are rubble of a killed run, which are damaged.

    <root>/<step>/          the arrays              <root>/<step>.json   the manifest: the step exists
    <root>/<step>.pending   the step is being written or deleted
    <root>/quarantine/      what did not verify, named <step>-<reason>

A folder without a manifest is rubble if the marker is there and damage if it is not: a kill between the arrays and
the manifest costs one step, a manifest that someone deleted is reported. Nothing here knows jax.
"""

import contextlib
import os
import pathlib
import re
import shutil
import time

from absl import logging

from research import manifest

_STEP = re.compile(r"(0|[1-9][0-9]{0,11})(\.json)?")


def traces(root) -> set[int]:
  """All steps of which a folder or a manifest is there, good or bad."""
  return {int(name.removesuffix(".json")) for name in _names(root)}


def existing(root) -> list[int]:
  """The steps that have a folder and a manifest, oldest first, not yet verified."""
  names = _names(root)
  return sorted(step for step in traces(root) if {str(step), f"{step}.json"} <= names)


def newest_good(root, how: str, *, read_only: bool) -> tuple[int | None, bool]:
  """Returns (newest step that verifies or None, whether a newer one was damaged); sets the damaged ones aside."""
  damaged = False
  for step in sorted(traces(root), reverse=True):
    try:
      manifest.verify(root, step, how)
      return step, damaged
    except manifest.Damaged as error:
      folder, reason = pathlib.Path(root) / str(step), error.reason
      if reason == "no-manifest" and _marker(root, step).exists():
        continue
      if reason == "no-manifest" and folder.is_dir() and not os.listdir(folder):
        reason = "empty"
      damaged |= reason != "empty"
      logging.error("checkpoint of step %d is DAMAGED and not used: %s", step, error)
      if not read_only:
        quarantine(root, step, reason)
  return None, damaged


def begin(root, step: int):
  """Marks a step as being written, after setting aside whatever stands in its place."""
  root = pathlib.Path(root)
  root.mkdir(parents=True, exist_ok=True)
  _remove_temporary(root, "*")
  if os.path.lexists(root / str(step)):
    quarantine(root, step, "no-manifest")
  _marker(root, step).touch()
  manifest.fsync_folder(root)


def commit(root, step: int, *, identity: dict, tree: dict, keep: int):
  """Signs a step, and then deletes all but the `keep` newest."""
  manifest.write(root, step, identity=identity, tree=tree)
  _marker(root, step).unlink()
  for old in existing(root)[:-keep]:
    _marker(root, old).touch()
    (pathlib.Path(root) / f"{old}.json").unlink()
    remove(root, old)


def remove(root, step: int):
  """Deletes an unsigned step with its temporary files and its marker, as far as the disk allows."""
  root = pathlib.Path(root)
  shutil.rmtree(root / str(step), ignore_errors=True)
  _remove_temporary(root, step)
  with contextlib.suppress(OSError):  # the save that failed on this disk has reported it
    for left in root.glob(f"{step}.json.*.tmp"):
      left.unlink(missing_ok=True)
    _marker(root, step).unlink(missing_ok=True)


def clean(root):
  """Removes what a killed run left half written or half deleted."""
  for marker in pathlib.Path(root).glob("*.pending"):
    if marker.stem.isdecimal() and not marker.with_suffix(".json").exists():
      remove(root, int(marker.stem))
    else:
      marker.unlink()


def quarantine(root, step: int, reason: str):
  """Moves the folder and the manifest of a step to quarantine/<step>-<reason>."""
  root = pathlib.Path(root)
  name, n = f"{step}-{reason}", 1
  (root / "quarantine").mkdir(exist_ok=True)
  while any(os.path.lexists(root / "quarantine" / (name + end)) for end in ("", ".json")):
    n += 1
    name = f"{step}-{reason}-{n}"
  for source, end in ((f"{step}.json", ".json"), (str(step), "")):
    if os.path.lexists(root / source):
      os.rename(root / source, root / "quarantine" / (name + end))
  logging.error("checkpoint of step %d was moved to quarantine/%s", step, name)


def _remove_temporary(root, step):
  """Deletes what orbax has not finished, until it stays away: writes of a failed save end later and make it again."""
  for _ in range(20):
    left = list(root.glob(f"{step}.orbax-checkpoint-tmp*"))
    if not left:
      return
    for folder in left:
      shutil.rmtree(folder, ignore_errors=True)
    time.sleep(0.05)


def _names(root):
  return {name for name in (os.listdir(root) if os.path.isdir(root) else ()) if _STEP.fullmatch(name)}


def _marker(root, step):
  return pathlib.Path(root) / f"{step}.pending"
