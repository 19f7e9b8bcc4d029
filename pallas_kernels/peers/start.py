"""Starts the rivals' processes, checks what they compute and lists their times beside ours.

Rivals share neither a process nor, as a rule, a Python with us, so nothing is interleaved: each is timed
alone on the same device, one after the other, and ratios mean less than those of one process.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from pallas_kernels.peers import protocol

ROOT = pathlib.Path(__file__).parents[2]
RIVALS = {"flash-linear-attention": "fla_times", "jax-linear-attention": "jla_times"}
RULES = ("scalar", "vector", "scalar delta")
CHECK = (1, 128, 2, 64)  # B, T, H, D of the shared arrays
BOUND = 2e-2  # of bfloat16 against our float32 reference


def ask(rival, python, shapes, repeats, reference, rules=RULES):
  """Asks one rival for its values and times.

  Args:
    rival: a key of `RIVALS`.
    python: interpreter that can import the rival.
    shapes: list of (B, T, H, D, dtype name).
    repeats: timed calls each.
    reference: function of ({name: array}, cotangent) to (output, {name: gradient}), float32.
    rules: names such as "scalar" or "vector delta".

  Returns:
    {"rival", "error": why nothing was measured} or {"rival", "device", "check": [...], "timings": [...]}.
  """
  with tempfile.TemporaryDirectory() as name:
    arrays = write_request(name, shapes, repeats, rules)
    done = subprocess.run([python, "-m", f"pallas_kernels.peers.{RIVALS[rival]}", name], cwd=ROOT,
                          capture_output=True, text=True)
    if done.returncode:
      lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
      return dict(rival=rival, error=lines[-1])
    return dict(rival=rival, **read_answer(name, arrays, reference))


def write_request(folder, shapes, repeats, rules):
  """Fills the folder of a request; returns {rule: arrays to check}."""
  arrays = {rule: _rounded(protocol.draw(rule, *CHECK, seed=1)) for rule in rules}
  for i, rule in enumerate(rules):
    np.savez(pathlib.Path(folder) / f"check_{i}.npz", **arrays[rule])
  (pathlib.Path(folder) / "request.json").write_text(json.dumps(dict(
      rules=rules, shapes=shapes, repeats=repeats, check_dtype="bfloat16")))
  return arrays


def read_answer(folder, arrays, reference):
  """{"device", "check", "timings"} from what a rival left in the folder."""
  answer = json.loads((pathlib.Path(folder) / "answer.json").read_text())
  check = [_compare(rule, pathlib.Path(folder) / f"answer_{i}.npz", reference, values)
           for i, (rule, values) in enumerate(arrays.items())]
  return dict(check=check, **answer)


def measure(python, shapes, repeats, reference, ours):
  """Asks all rivals and prints them beside `ours`, {(shape, rule, mode): milliseconds}; returns the answers."""
  answers = []
  for rival in RIVALS:
    answer = ask(rival, python or sys.executable, shapes, repeats, reference)
    answers.append(answer)
    if "error" in answer:
      print(f"{rival}: not measured, {answer['error']} ({python or sys.executable})", flush=True)
      continue
    for row in answer["check"]:
      print("{0}: {rule:13s} o {o:.1e}  gradients {gradients:.1e}  {1}".format(
          rival, "ok" if row["ok"] else "OUT OF BOUNDS", **row), flush=True)
    for row in answer["timings"]:
      ms = ours[(*row["shape"], row["rule"], row["mode"])]
      print("B{} T{} H{} D{} {}".format(*row["shape"]) + f"  {row['rule']:13s}{row['mode']:8s} "
            f"{rival} {row['ms']:.2f} ms  ours {ms:.2f} ms  x{row['ms'] / ms:.2f}, processes apart", flush=True)
  return answers


def _compare(rule, path, reference, arrays):
  arrays = dict(arrays)
  do = arrays.pop("do")
  want_o, want = reference(arrays, do)
  with np.load(path, allow_pickle=False) as got:
    o = _relative(got["o"], want_o)
    gradients = max(_relative(got[name], want[name]) for name in arrays)
  return dict(rule=rule, o=o, gradients=gradients, ok=bool(o <= BOUND and gradients <= BOUND))


def _rounded(arrays):
  """float32 arrays whose q, k, v and cotangent have 8 significant bits, as bfloat16 has."""
  bits = lambda x: (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
  return {name: x if name in ("g", "beta") else bits(np.ascontiguousarray(x)) for name, x in arrays.items()}


def _relative(got, want):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))
