"""A signed list of the files of a checkpoint step: a step exists when its manifest verifies.

`<root>/<step>.json` is written last, over the finished folder `<root>/<step>/`:

    {"files": {"d/8f3a": [size, sha256], ...}, "format": 1, "identity": {...},
     "sha256": of all the rest, "step": 120, "tree": {"params/w": [[8, 4], "float32"], ...}}

The text is canonical (sorted, no spaces) and must re-serialise to itself, so a flipped bit anywhere in it is seen.
Reading trusts nothing: only files that a walk of the folder finds are opened, names are compared as strings.
"""

import hashlib
import json
import os
import pathlib
import re
import secrets
import stat

MAX_BYTES = 32 << 20
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
SHA256 = re.compile(r"[0-9a-f]{64}")


class Damaged(Exception):
  """A step that must not be used; `reason` is a short word fit for a file name."""

  def __init__(self, reason, detail):
    super().__init__(f"{reason}: {detail}"[:300])
    self.reason = reason


def canonical(value) -> bytes:
  """JSON with one spelling per value; refuses nan and infinity."""
  return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def as_read_back(value):
  """The value after a round trip through JSON: tuples become the lists that a manifest returns."""
  return json.loads(canonical(value))


def fsync_folder(path):
  """Makes the names in a folder survive a power cut."""
  handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def write_atomically(path, data: bytes):
  """Replaces a file so that a reader, or a power cut, sees all of the old one or all of the new one."""
  path = pathlib.Path(path)
  # Of its own: two processes may write the same file, and neither may rename the other's away.
  temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
  with open(temporary, "wb") as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
  fsync_folder(path.parent)


def list_files(folder) -> dict[str, os.stat_result]:
  """Returns {relative name: stat} of the regular files under a folder, dot files apart.

  Raises:
    Damaged: the folder is missing, or something in it is a symlink or not a plain file.
  """
  if not stat.S_ISDIR(_lstat(folder, "missing-folder").st_mode):
    raise Damaged("not-a-folder", repr(str(folder)))
  found = {}
  for parent, folders, files in os.walk(folder):
    for name in folders + files:
      path = os.path.join(parent, name)
      info = _lstat(path, "missing-file")
      if stat.S_ISLNK(info.st_mode):
        raise Damaged("symlink", repr(path))
      if not (stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)):
        raise Damaged("not-a-file", repr(path))
      # Network file systems and desktops leave dot files behind; orbax writes none.
      if stat.S_ISREG(info.st_mode) and not name.startswith("."):
        found[os.path.relpath(path, folder).replace(os.sep, "/")] = info
  return found


def write(root, step: int, *, identity: dict, tree: dict):
  """Hashes the folder of a step, makes it durable, and signs it.

  Args:
    root: folder that holds `<step>/` and receives `<step>.json`.
    identity: JSON-able facts about the run.
    tree: {path: [shape, dtype]} of the leaves.
  """
  folder = pathlib.Path(root) / str(step)
  files = {}
  for name in list_files(folder):
    _check_name(name)
    files[name] = list(_digest(folder / name, durable=True))
  for parent, _, _ in os.walk(folder):
    fsync_folder(parent)
  body = {"files": files, "format": 1, "identity": identity, "step": step, "tree": tree}
  body["sha256"] = hashlib.sha256(canonical(body)).hexdigest()
  write_atomically(pathlib.Path(root) / f"{step}.json", canonical(body))


def read(root, step: int) -> dict:
  """Returns the manifest of a step after checking its text, signature and form, not yet the files.

  Raises:
    Damaged: with the reason.
  """
  path = pathlib.Path(root) / f"{step}.json"
  info = _lstat(path, "no-manifest")
  if not stat.S_ISREG(info.st_mode):
    raise Damaged("symlink", f"{str(path)!r} is not a plain file")
  if info.st_size > MAX_BYTES:
    raise Damaged("bad-manifest", f"{info.st_size} bytes, more than {MAX_BYTES}")
  raw = path.read_bytes()
  try:
    body = json.loads(raw)
    same_text = canonical(body) == raw
    signature = body.pop("sha256")
    signed = signature == hashlib.sha256(canonical(body)).hexdigest()
    files, tree = body["files"], body["tree"]
    well_formed = (body["step"] == step and isinstance(body["identity"], dict)
                   and all(isinstance(size, int) and SHA256.fullmatch(digest) for size, digest in files.values())
                   and all(isinstance(dtype, str) and all(isinstance(n, int) for n in shape)
                           for shape, dtype in tree.values()))
  # RecursionError is how json refuses deep nesting; the others are wrong types in the form.
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise Damaged("bad-manifest", type(error).__name__) from None
  if not (same_text and signed and well_formed):
    raise Damaged("bad-manifest", "its own sha256 or its form does not hold")
  for name in files:
    _check_name(name)
  return body


def verify(root, step: int, how: str = "full") -> dict:
  """Returns the manifest of a step whose files are the ones that were signed.

  Args:
    how: "full" hashes every file, "sizes" compares names and sizes only.

  Raises:
    Damaged: with the reason.
  """
  body = read(root, step)
  folder = pathlib.Path(root) / str(step)
  found = list_files(folder)
  for name, (size, digest) in body["files"].items():
    if name not in found:
      raise Damaged("missing-file", name)
    if found[name].st_size != size:
      raise Damaged("wrong-size", f"{name} has {found[name].st_size} bytes, not {size}")
    if how == "full" and _digest(folder / name, durable=False)[1] != digest:
      raise Damaged("wrong-sha256", name)
  if extra := sorted(found.keys() - body["files"].keys()):
    raise Damaged("extra-file", repr(extra[0]))
  return body


def _lstat(path, reason):
  try:
    return os.lstat(path)
  except FileNotFoundError:
    raise Damaged(reason, repr(str(path))) from None


def _check_name(name):
  if len(name) > 1000 or not all(NAME.fullmatch(part) for part in name.split("/")):
    raise Damaged("bad-name", repr(name[:100]))


def _digest(path, *, durable):
  handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
  with open(handle, "rb") as file:
    if durable:
      os.fsync(file.fileno())
    return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
