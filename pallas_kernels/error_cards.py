"""How far each kernel is from a float64 scan: the table of pallas_kernels/README.md.

    python -m pallas_kernels.error_cards            prints the table
    python -m pallas_kernels.error_cards --write    also puts it into the README

Errors are relative Frobenius norms of the output, and the largest over all gradients, with the inputs
rounded to their dtype before both sides see them. What is listed is the error of the arithmetic.
"""

import argparse
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.chunk_recurrence import chunk_recurrence, explain_backend, shapes
from pallas_kernels.inputs import Arrays, CASES, draw

README = pathlib.Path(__file__).with_name("README.md")
BEGIN, END = "<!-- error cards -->", "<!-- end of error cards -->"

# Bounds (output, gradients) by dtype and delta rule; hard cases have wider ones of their own.
BOUNDS = {("float32", False): (5e-6, 2e-5), ("float32", True): (2e-5, 1e-4),
          ("bfloat16", False): (1e-2, 1.5e-2), ("bfloat16", True): (3e-2, 3e-2)}
HARD_RESETS = (1e-4, 1e-4)  # float32: three -60 in a chunk spoil the differences of cumulative sums


def bound(dtype, delta, case):
  """Largest allowed (output error, gradient error) of one row."""
  limits = BOUNDS[dtype, delta]
  if case == "hard resets":
    limits = tuple(map(max, limits, HARD_RESETS))
  return limits


def card(decay, delta, dtype, case, T, backend, *, H=1, K=32, V=32):
  """(output error, largest gradient error) of one backend on one case."""
  arrays = draw(decay, delta, 1, T, H, K, V, dtype=dtype, case=case)
  got = _run(arrays, backend)
  with jax.enable_x64(True):
    exact = Arrays(*(None if x is None else jnp.asarray(np.asarray(x, np.float64)) for x in arrays))
    want = jax.tree.map(np.asarray, _run(exact, "reference"))
  errors = jax.tree.map(_norm, got, want)
  return errors[0], max(jax.tree.leaves(errors[1]))


def cards(backends, dtypes=("float32", "bfloat16"), cases=CASES, tokens=(1024,)):
  """Yields (decay, delta, dtype, case, T, backend, output error, gradient error) for all flag sets."""
  for decay, delta in shapes.RULES:
    for dtype in dtypes:
      for case in cases:
        if (decay == "none" and case in CASES[3:]) or (not delta and case in CASES[1:3]):
          continue
        for T in tokens:
          for backend in backends:
            yield (decay, delta, dtype, case, T, backend, *card(decay, delta, dtype, case, T, backend))


def table(rows):
  """The rows as a Markdown table."""
  lines = ["| decay | delta | dtype | case | T | backend | output | gradients |", "|---|---|---|---|---|---|---|---|"]
  for decay, delta, dtype, case, T, backend, o, gradient in rows:
    lines.append(f"| {decay} | {'yes' if delta else 'no'} | {dtype} | {case} | {T} | {backend} | "
                 f"{o:.1e} | {gradient:.1e} |")
  return "\n".join(lines)


def main(argv=None):
  parser = argparse.ArgumentParser(prog="python -m pallas_kernels.error_cards",
                                   description=__doc__.split("\n")[0])
  parser.add_argument("--write", action="store_true", help=f"put the table into {README.name}")
  parser.add_argument("--tokens", type=int, nargs="+", default=[1024], help="sequence lengths")
  options = parser.parse_args(argv)
  probe = draw("scalar", True, 1, 64, 1, 32, 32)
  backends = [n for n in ("xla", "interpret", "pallas_tpu", "pallas_gpu") if _runs(probe, n)]
  rows = list(cards(backends, tokens=options.tokens))
  rows += list(cards(backends, cases=("random", "hard resets"), tokens=(8192,)))
  text = (f"Measured with jax {jax.__version__} on {jax.devices()[0].device_kind}, K = V = 32; "
          f"\"gradients\" is the worst of all inputs.\n\n{table(rows)}")
  print(text)
  if options.write:
    readme = README.read_text()
    if BEGIN not in readme or END not in readme:
      raise ValueError(f"{README} has no lines {BEGIN!r} and {END!r}; add them where the table belongs.")
    fresh = f"{BEGIN}\n{text}\n{END}"
    README.write_text(re.sub(re.escape(BEGIN) + ".*" + re.escape(END), lambda _: fresh, readme, flags=re.S))
  return 0


@functools.partial(jax.jit, static_argnums=1)
def _run(arrays, backend):
  o, pull = jax.vjp(lambda a: chunk_recurrence(*a, backend=backend)[0], arrays)
  return o, pull(jnp.cos(jnp.arange(o.size, dtype=jnp.float32)).reshape(o.shape).astype(o.dtype))


def _runs(arrays, name):
  try:
    explain_backend(*arrays, backend=name)
  except ValueError:
    return False
  return True


def _norm(got, want):
  return float(np.linalg.norm(np.asarray(got, np.float64) - want) / max(np.linalg.norm(want), 1e-300))


if __name__ == "__main__":
  raise SystemExit(main())
