"""Static schedules of the TPU kernels: how many instruction bundles a chunk takes, without a TPU.

    python -m pallas_kernels.bundles                  prints the table
    python -m pallas_kernels.bundles --write          also writes pallas_kernels/bundles.csv

One bundle is at least one cycle; waits for memory are not in it, so this is a lower bound on time and
an advisory gauge of changes. The figures come from the compiler's own dump, whose format is undocumented.
"""

import argparse
import csv
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from pallas_kernels import tpu_aot
from pallas_kernels.chunk_recurrence.shapes import RULES
from pallas_kernels.chunk_recurrence.tpu_layout import choose_tiling
from pallas_kernels.diag_scan import tpu as tpu_scan

TABLE = pathlib.Path(__file__).with_name("bundles.csv")
COLUMNS = ("topology", "decay", "delta", "kernel", "D", "chunk", "heads", "bundles", "per_128_tokens", "vmem")
# A line of the dump that is one bundle inside the loop over grid steps, or inside a loop of that loop.
BUNDLE = re.compile(r"^\s*0x[0-9a-f]+\s+(?:\w+)?: > ?\{", re.M)
INNER_BUNDLE = re.compile(r"^\s*0x[0-9a-f]+\s+(?:\w+)?: > ?> ?\{", re.M)
SCANS = ("real", "real constant", "complex", "complex constant")
DUMP = "STRATA_BUNDLE_DUMP"


def measure(plan, topology, kernel, folder):
  """One row: bundles of the body of the loop of `kernel`, "forward" or "backward".

  Raises:
    RuntimeError: the compiler wrote no dump, or one of another format.
  """
  compiled = {"forward": tpu_aot.compile_forward, "backward": tpu_aot.compile_backward}[kernel](plan, topology)
  bundles = _count(folder, f"chunk_recurrence_{kernel}", BUNDLE)
  tiling = choose_tiling(plan)
  return dict(zip(COLUMNS, (topology, plan.decay, plan.delta, kernel, plan.K, plan.chunk, tiling.hp, bundles,
                            round(bundles / tiling.hp * 128 / plan.chunk), tpu_aot.report(compiled).vmem)))


def measure_scan(kind, topology, kernel, folder):
  """One row of the elementwise scan; its "heads" are groups of 128 channels.

  Raises:
    RuntimeError: the compiler wrote no dump, or one of another format.
  """
  compiled = tpu_aot.compile_scan(kind, topology, backward=kernel == "backward", B=2, T=2 * tpu_scan.TOKENS)
  steps, name = tpu_scan.TOKENS // tpu_scan.ROWS // tpu_scan.UNROLLED, f"diag_scan_{kernel}"
  bundles = _count(folder, name, BUNDLE) + steps * _count(folder, name, INNER_BUNDLE)
  heads = tpu_scan.LANES // 128 // (2 if kind.startswith("complex") else 1)
  return dict(zip(COLUMNS, (topology, f"diagonal {kind}", False, kernel, 128, tpu_scan.TOKENS, heads, bundles,
                            round(bundles / heads * 128 / tpu_scan.TOKENS), tpu_aot.report(compiled).vmem)))


def _count(folder, name, bundle):
  """Bundles in the dumps of the kernel `name`."""
  files = [f for f in folder.iterdir() if name in f.name and re.search(r"-\d+-final_bundles\.txt$", f.name)]
  bundles = sum(len(bundle.findall(f.read_text())) for f in files)
  if not bundles:
    raise RuntimeError(f"{len(files)} dumps of {name} with no loop body in them: this libtpu writes another "
                       "format; the table cannot be made with it.")
  return bundles


def main(argv=None):
  parser = argparse.ArgumentParser(prog="python -m pallas_kernels.bundles", description=__doc__.split("\n")[0])
  parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
  parser.add_argument("--topologies", nargs="+", default=list(tpu_aot.TOPOLOGIES), choices=tpu_aot.TOPOLOGIES)
  parser.add_argument("--chunk", type=int, help="tokens per chunk (default: what the public call takes)")
  parser.add_argument("--width", type=int, nargs="+", default=[128], help="K = V (default 128)")
  options = parser.parse_args(argv)
  if not tpu_aot.available():
    parser.error("libtpu is not installed; it comes with the extra `tpu`.")
  if DUMP not in os.environ:
    return _with_dump(sys.argv[1:] if argv is None else argv)
  folder, rows = pathlib.Path(os.environ[DUMP]), []

  def add(row):
    rows.append(row)
    print(*(f"{name} {value}" for name, value in row.items()), sep="  ", flush=True)
    for file in folder.iterdir():
      file.unlink()

  for topology in options.topologies:
    for width in options.width:
      for decay, delta in RULES:
        for kernel, states in (("forward", "recompute"), ("backward", "save")):
          plan = tpu_aot.plan_of(decay, delta, D=width, chunk=options.chunk, save_states=states)
          add(measure(plan, topology, kernel, folder))
    for kind in SCANS:
      for kernel in ("forward", "backward"):
        add(measure_scan(kind, topology, kernel, folder))
  if options.write:
    with open(TABLE, "w", newline="") as file:
      writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
      writer.writeheader()
      writer.writerows(rows)
  return 0


def _with_dump(argv):
  """Runs this command again with the dump switched on: libtpu reads its flags once, when it is loaded."""
  with tempfile.TemporaryDirectory() as folder:
    flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    environment = os.environ | tpu_aot.ENVIRONMENT | {
        "JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": flags, DUMP: folder}
    command = [sys.executable, "-m", "pallas_kernels.bundles", *argv]
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
  raise SystemExit(main())
