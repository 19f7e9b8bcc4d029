"""What a rival's process is asked and what it answers: files, so that it needs neither our jax nor our Python.

A request is a folder with `request.json` and one `check_<i>.npz` per rule; the answer is `answer.json` and
`answer_<i>.npz` beside them. Values are checked on small arrays that both sides share; times are taken on
arrays that the rival draws itself, because the large ones would take gigabytes of files.
"""

import json
import pathlib
import statistics
import sys
import time

import numpy as np

# Dims: B batch, T tokens, H heads, D = K = V width.


def serve(device, prepare, folder=None):
  """Answers a request; what the main function of a rival's module calls.

  Args:
    device: name of the device that the rival runs on.
    prepare: function of ({name: float32 array}, rule name, dtype name) to {"forward": call, "train": call}.
      A call returns after the device has finished: "forward" the output, "train" the output and a dictionary
      of gradients, both as numpy arrays if called with `values=True` and anything otherwise.
    folder: of the request; None takes it from the command line.
  """
  folder = pathlib.Path(folder or sys.argv[1])
  request = json.loads((folder / "request.json").read_text())
  for i, rule in enumerate(request["rules"]):
    with np.load(folder / f"check_{i}.npz", allow_pickle=False) as arrays:
      o, gradients = prepare(dict(arrays), rule, request["check_dtype"])["train"](values=True)
    np.savez(folder / f"answer_{i}.npz", o=o, **gradients)
  timings = []
  for shape in request["shapes"]:
    for rule in request["rules"]:
      for mode, call in prepare(draw(rule, *shape[:4]), rule, shape[4]).items():
        timings.append(dict(shape=shape, rule=rule, mode=mode, ms=_median(call, request["repeats"])))
  (folder / "answer.json").write_text(json.dumps(dict(device=device, timings=timings)))


def draw(rule, B, T, H, D, seed=0):
  """Unit keys, normal queries, values and cotangents, gates of at most -0.2 and strengths of at most 1."""
  random = np.random.default_rng(seed)
  q, k, v, do = random.standard_normal((4, B, T, H, D), np.float32)
  arrays = dict(q=q, k=k / np.linalg.norm(k, axis=-1, keepdims=True), v=v, do=do)
  if rule.startswith("vector"):
    arrays["g"] = random.uniform(-0.2, 0, (B, T, H, D)).astype(np.float32)
  elif rule.startswith("scalar"):
    arrays["g"] = random.uniform(-0.2, 0, (B, T, H)).astype(np.float32)
  if rule.endswith("delta"):
    arrays["beta"] = random.uniform(0, 1, (B, T, H)).astype(np.float32)
  return arrays


def _median(call, repeats):
  call()
  call()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    call()
    times.append(1e3 * (time.perf_counter() - start))
  return statistics.median(times)
