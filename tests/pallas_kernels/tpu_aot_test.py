"""The TPU kernels compile for three generations of TPU, fit their memory and copy nothing.

No TPU is needed, only libtpu (the extra `tpu`). Compilation runs in a process of its own, whose
environment must be set before jax starts.

    pytest tests/pallas_kernels/tpu_aot_test.py               one rule per generation
    pytest tests/pallas_kernels/tpu_aot_test.py -m slow       all rules, widths, dtypes and options
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

from pallas_kernels import tpu_aot
from pallas_kernels.chunk_recurrence.shapes import RULES
from pallas_kernels.chunk_recurrence.tpu_layout import VMEM_BUDGET

# Half an activation of SMALL. What does not grow with T may be as much as 344 kB: v5p aligns each of XLA's little
# tuples of pointers to 16 kB, and the preparation of gates and segments has a score of them.
SMALL_CHANGE = 512 * 2**10
VMEM_LIMIT = 16 * 2**20  # bytes a kernel may take before the compiler refuses
ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not tpu_aot.available(), reason="libtpu is not installed (extra `tpu`)")

SMALL = dict(B=1, T=1024, H=4)
OPTIONS = {
    "float32": dict(dtype="float32"), "D64": dict(D=64), "D256": dict(D=256), "D96 padded": dict(D=96),
    "wide values": dict(V=256), "grouped": dict(G=2), "one key head": dict(G=1), "three heads": dict(H=3),
    "packed": dict(packed=True), "reverse": dict(reverse=True), "packed reverse": dict(packed=True, reverse=True),
    "recompute": dict(save_states="recompute"), "chunk 16": dict(chunk=16), "chunk 64": dict(chunk=64),
    "T 500": dict(T=500), "D64 one head": dict(D=64, H=1), "D64 float32": dict(D=64, dtype="float32"),
}
SCANS = ("real", "real constant", "complex", "complex constant")
SCAN_SIZES = dict(B=1, T=1024, D=512)
SCAN_PLANE = 4 * 1024 * 512  # bytes of one float32 plane of SCAN_SIZES
# Activations are copied only where they do not fill tiles of 128 lanes and chunks of rows.
PADDED = ("D96 padded", "T 500", "D64 one head")


@functools.cache
def _reports(topology, cases):
  """{case: [forward, backward]} of (name, decay, delta, options) cases, from one compiling process.

  A case with "scan" for its decay is the elementwise scan of the kind that it has for its delta.
  """
  run = subprocess.run([sys.executable, __file__, topology, json.dumps(cases)], cwd=ROOT, text=True,
                       capture_output=True, check=False, timeout=900,
                       env=os.environ | tpu_aot.ENVIRONMENT | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)})
  assert run.returncode == 0, run.stderr[-3000:]
  return {name: [tpu_aot.Report(*r) for r in both] for name, both in json.loads(run.stdout.splitlines()[-1]).items()}


def _assert_lean(reports, padded=()):
  for name, (forward, backward) in reports.items():
    for direction, report in (("forward", forward), ("backward", backward)):
      where = (name, direction, report)
      assert report.kernels == (2 if name == "recompute" and direction == "backward" else 1), where
      assert 0 < report.vmem < VMEM_LIMIT, where
      if name not in padded:
        assert not [c for c in report.copies if _numbers(c) > SMALL["T"] * SMALL["H"] * 2], where
        assert report.temporaries <= SMALL_CHANGE or name == "recompute", where


def _numbers(array):
  """Size of an array type; one number per token and head may be moved, K of them may not."""
  sizes = array[array.index("[") + 1:-1].split(",")
  return functools.reduce(lambda n, size: n * int(size), filter(None, sizes), 1)


# What the fast tests compile: one rule and one scan per generation, in one process.
ONES = {"v5e": (("scalar", True), "complex"), "v5p": (("scalar", False), "real"),
        "v6e": (("vector", False), "real constant")}


def _one(topology):
  rule, kind = ONES[topology]
  reports = _reports(topology, (("plain", *rule, tuple(SMALL.items())), (kind, "scan", kind, tuple(SCAN_SIZES.items()))))
  return {"plain": reports["plain"]}, {kind: reports[kind]}


@pytest.mark.parametrize("topology", ONES)
def test_a_kernel_compiles_for_each_generation_without_copies(topology):
  _assert_lean(_one(topology)[0])


def _scans(topology, kinds, sizes):
  return _reports(topology, tuple((kind, "scan", kind, tuple(sizes.items())) for kind in kinds))


def _assert_scans_are_lean(by_kind, padded=False):
  for kind, reports in by_kind.items():
    for kernels, report in zip((1, 2), reports):
      where = (kind, report)
      assert report.kernels == kernels, where
      assert 0 < report.vmem < VMEM_BUDGET, where
      # The forward in front of a backward keeps its h; of complex a, x, h, and dh, both planes are split off.
      planes = kernels - 1 if kind.startswith("real") else 4 + 2 * kernels
      assert padded or not report.copies, where
      assert padded or report.temporaries <= planes * SCAN_PLANE + SMALL_CHANGE, where


@pytest.mark.parametrize("topology", ONES)
def test_a_scan_and_its_gradients_compile_for_each_generation_without_copies(topology):
  _assert_scans_are_lean(_one(topology)[1])


@pytest.mark.slow
@pytest.mark.parametrize("topology", tpu_aot.TOPOLOGIES)
def test_every_scan_compiles_for_every_generation(topology):
  _assert_scans_are_lean(_scans(topology, SCANS, SCAN_SIZES))
  for sizes in (dict(B=2, T=3, D=5), dict(T=1000, D=600, reverse=True), dict(T=4096, D=2560)):
    _assert_scans_are_lean(_scans(topology, SCANS, sizes), padded=True)


@pytest.mark.slow
@pytest.mark.parametrize("topology", tpu_aot.TOPOLOGIES)
def test_every_rule_compiles_for_every_generation_without_copies(topology):
  cases = tuple((f"{decay} {delta}", decay, delta, tuple(SMALL.items())) for decay, delta in RULES)
  _assert_lean(_reports(topology, cases))


@pytest.mark.slow
@pytest.mark.parametrize("topology", tpu_aot.TOPOLOGIES)
@pytest.mark.parametrize("rule", [("none", False), ("scalar", True), ("vector", True)], ids=str)
def test_every_option_compiles_for_every_generation(topology, rule):
  cases = tuple((name, *rule, tuple((SMALL | changed).items())) for name, changed in OPTIONS.items())
  _assert_lean(_reports(topology, cases), PADDED)


def _main(topology, cases):
  out = {}
  for name, decay, delta, options in json.loads(cases):
    if decay == "scan":
      out[name] = [tpu_aot.report(tpu_aot.compile_scan(delta, topology, backward=backward, **dict(options)))
                   for backward in (False, True)]
      continue
    plan = tpu_aot.plan_of(decay, delta, **dict(options))
    out[name] = [tpu_aot.report(f(plan, topology)) for f in (tpu_aot.compile_forward, tpu_aot.compile_backward)]
  print(json.dumps(out))


if __name__ == "__main__":
  _main(*sys.argv[1:])
