"""The kernels against their rivals on this device: correctness first, then paired ratios.

    python -m pallas_kernels.bench              times every backend that runs here
    python -m pallas_kernels.bench --check      correctness only
    python -m pallas_kernels.bench --json FILE  also writes the numbers
    python -m pallas_kernels.bench --plot FILE  draws time against T, linear against softmax, as PNG
    python -m pallas_kernels.bench --peers      also times flash-linear-attention and jax-linear-attention

Every figure comes from one process with the rivals interleaved on the same arrays: medians of 20 calls
after a warm-up, and ratios of medians. Milliseconds only mean something beside the device's name.
"""

import argparse
import functools
import json
import math
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import processor
from pallas_kernels.chunk_recurrence import chunk_recurrence, explain_backend, shapes
from pallas_kernels.chunk_recurrence.plan import default_chunk
from pallas_kernels.diag_scan import diag_scan
from pallas_kernels.inputs import Arrays, draw
from pallas_kernels.peers import start

# Dims: B batch, T tokens, H heads, D width, C chunk.

# (peak bytes per second, peak FLOP per second in the matmul dtype) by a part of the device's name.
PEAKS = {"H100": (3.35e12, 800e12), "H200": (4.8e12, 800e12), "TPU v5 lite": (819e9, 197e12),
         "TPU v5p": (2765e9, 459e12), "TPU v6": (1640e9, 918e12)}
RIVALS_CPU_T = 4096  # beyond, one call of softmax attention takes seconds on a CPU
DEVICE_BACKENDS = ("pallas_tpu", "pallas_gpu")
CHECK_BOUND = {"float32": (5e-6, 2e-5), "bfloat16": (1e-2, 2e-2)}


def available(arrays, names=("xla", *DEVICE_BACKENDS)):
  """Names of the backends that can run these arrays here."""
  found = []
  for name in names:
    try:
      explain_backend(*arrays, backend=name)
    except ValueError:
      continue
    found.append(name)
  return found


def check(rules=shapes.RULES, tokens=(100, 1000)):
  """Compares every backend with the reference, values and gradients; rows of errors and bounds."""
  rows = []
  for (decay, delta), T, dtype in ((r, T, d) for r in rules for T in tokens for d in CHECK_BOUND):
    arrays = draw(decay, delta, 1, T, 2, 64, 64, dtype=dtype)
    exact = draw(decay, delta, 1, T, 2, 64, 64, dtype=dtype)
    exact = exact._replace(**{n: getattr(exact, n).astype(jnp.float32) for n in "qkv"})
    want = _value_and_gradients("reference")(exact)
    for name in available(arrays):
      o, *gradients = jax.tree.map(_relative, _value_and_gradients(name)(arrays), want)
      row = dict(backend=name, decay=decay, delta=delta, T=T, dtype=dtype, o=o,
                 gradients=max(jax.tree.leaves(gradients)))
      row["ok"] = bool(row["o"] <= CHECK_BOUND[dtype][0] and row["gradients"] <= CHECK_BOUND[dtype][1])
      rows.append(row)
  return rows


def paired_medians(calls, repeats=20):
  """Median milliseconds of each `calls[name]()`, all of them interleaved in every repetition."""
  times = {name: [] for name in calls}
  for call in calls.values():
    jax.block_until_ready(call())
  for _ in range(repeats):
    for name, call in calls.items():
      # The rival before leaves caches and allocator as it liked them: one call untimed.
      jax.block_until_ready(call())
      start = time.perf_counter()
      jax.block_until_ready(call())
      times[name].append(1e3 * (time.perf_counter() - start))
  return {name: float(np.median(values)) for name, values in times.items()}


def compare(shape, decay, delta, *, backward, reference=True, softmax=True, repeats=20):
  """Times all backends, and softmax attention, at one shape.

  Returns:
    A row: milliseconds by name, ratio of each rival to the best kernel, floor fraction, bytes of memory.
  """
  B, T, H, D, dtype = shape
  arrays = jax.device_put(draw(decay, delta, B, T, H, D, D, dtype=dtype))
  names = available(arrays) + (["reference"] if reference else [])
  compiled = {name: _compile(_call(name, backward), arrays) for name in names}
  if softmax:
    compiled["softmax"] = _compile(_softmax_call(backward), arrays)
  calls = {name: functools.partial(run, arrays) for name, run in compiled.items()}
  ms = paired_medians(calls, repeats)
  ours = min((n for n in ms if n not in ("reference", "softmax")), key=ms.get)
  floor = _floor_seconds(shape, decay, delta, backward)
  return dict(shape=str(shape), size=shape, T=T, decay=decay, delta=delta, mode="train" if backward else "forward",
              ms=ms, best=ours, ratio={n: ms[n] / ms[ours] for n in ms if n != ours},
              floor_fraction=None if floor is None else 1e3 * floor / ms[ours],
              memory={n: _memory(run) for n, run in compiled.items()})


def compare_scan(B, T, D, *, repeats=20):
  """Times `diag_scan` against `lax.associative_scan`, forward and backward."""
  random = np.random.default_rng(0)
  a = jnp.asarray(random.uniform(0.5, 1.0, (B, T, D)), jnp.float32)
  x = jnp.asarray(random.standard_normal((B, T, D)), jnp.float32)

  def associative(a, x):
    combine = lambda early, late: (early[0] * late[0], late[0] * early[1] + late[1])
    return jax.lax.associative_scan(combine, (a, x), axis=1)[1]

  rivals = {"diag_scan": lambda a, x: diag_scan(a, x)[0], "associative_scan": associative,
            "reference": lambda a, x: diag_scan(a, x, backend="reference")[0]}
  grad = lambda f: jax.jit(jax.grad(lambda a, x: jnp.sum(jnp.sin(f(a, x))), argnums=(0, 1)))
  ms = paired_medians({n: functools.partial(grad(f), a, x) for n, f in rivals.items()}, repeats)
  return dict(shape=f"B{B} T{T} D{D} float32", mode="train", ms=ms,
              ratio={n: ms[n] / ms["diag_scan"] for n in ms if n != "diag_scan"})


def plot(rows, path):
  """Draws milliseconds against T on log axes, one line per backend."""
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(6, 4))
  for name in sorted({n for row in rows for n in row["ms"]}):
    points = [(row["T"], row["ms"][name]) for row in rows if name in row["ms"]]
    axes.loglog(*zip(*points), marker="o", label=name)
  axes.set_xlabel("tokens T")
  axes.set_ylabel("forward + backward, ms")
  B, _, H, D, dtype = rows[0]["size"]
  axes.set_title(f"B{B} H{H} D{D} {dtype} on {_device()}", fontsize=9)
  axes.set_xscale("log", base=2)
  axes.legend()
  figure.tight_layout()
  figure.savefig(path, dpi=120)


def peers(timings, python, repeats):
  """Times rival packages in processes of their own at the shapes of `timings`; see peers/start.py."""
  shape = lambda row: tuple(row["size"])
  rule = lambda row: row["decay"] + (" delta" if row["delta"] else "")
  ours = {(*shape(row), rule(row), row["mode"]): row["ms"][row["best"]] for row in timings}
  return start.measure(python, list(dict.fromkeys(map(shape, timings))), repeats, _reference_values, ours)


def growth(rows, name):
  """Exponent of a log-log fit of milliseconds against T."""
  return float(np.polyfit(np.log([r["T"] for r in rows]), np.log([r["ms"][name] for r in rows]), 1)[0])


def main(argv=None):
  parser = argparse.ArgumentParser(prog="python -m pallas_kernels.bench", description=__doc__.split("\n")[0])
  parser.add_argument("--check", action="store_true", help="correctness only")
  parser.add_argument("--json", metavar="FILE", help="write all numbers there")
  parser.add_argument("--plot", metavar="FILE", help="write the crossover plot there, PNG")
  parser.add_argument("--repeats", type=int, default=20, help="timed calls per rival (default 20)")
  parser.add_argument("--peers", metavar="PYTHON", nargs="?", const="", default=None,
                      help="also times rival packages, with the interpreter that has them (default: this one)")
  options = parser.parse_args(argv)
  if options.peers is not None:
    # The rivals' processes need memory on the same device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  report = dict(device=_device(), jax=jax.__version__, date=time.strftime("%Y-%m-%d"))
  print(f"{report['device']}, jax {report['jax']}", flush=True)
  report["check"] = check(tokens=(100,) if _cpu() else (1024, 8192))
  for row in report["check"]:
    print("{backend:11s}{decay:7s} delta={delta!s:6}T={T:<6}{dtype:9s} o {o:.1e}  gradients {gradients:.1e}  "
          .format(**row) + ("ok" if row["ok"] else "OUT OF BOUNDS"), flush=True)
  failed = not all(row["ok"] for row in report["check"])
  if not options.check and not failed:
    report |= _timings(options)
    if options.peers is not None:
      report["peers"] = peers(report["timings"], options.peers, options.repeats)
  if options.json:
    with open(options.json, "w") as file:
      json.dump(report, file, indent=1)
  return 1 if failed else 0


def _timings(options):
  cases = shapes.PEERS_CPU + shapes.LANGUAGE_MODELS if _cpu() else shapes.PEERS
  timings = []
  for shape in cases:
    for decay, delta in (("scalar", False), ("vector", False), ("scalar", True)):
      for backward in (False, True):
        row = compare(shape, decay, delta, backward=backward, reference=_cpu(), repeats=options.repeats)
        timings.append(row)
        _print(row)
  crossover = []
  for shape in shapes.CROSSOVER_CPU if _cpu() else shapes.CROSSOVER:
    rivals = not _cpu() or shape.T <= RIVALS_CPU_T
    crossover.append(compare(shape, "scalar", False, backward=True, reference=_cpu() and rivals, softmax=rivals,
                             repeats=options.repeats))
    _print(crossover[-1])
  exponent = growth([row for row in crossover if row["T"] >= 1024], crossover[-1]["best"])
  print(f"time grows as T^{exponent:.2f} from T=1024 on")
  scans = [compare_scan(*size, repeats=options.repeats) for size in ((8, 512, 256), (1, 4096, 256))]
  for row in scans:
    _print(row)
  if options.plot:
    plot(crossover, options.plot)
  return dict(timings=timings, crossover=crossover, growth=exponent, diag_scan=scans)


def _print(row):
  rule = "diag_scan" if "decay" not in row else row["decay"] + (" delta" if row["delta"] else "")
  times = "  ".join(f"{n} {t:.2f} ms" for n, t in row["ms"].items())
  ratios = "  ".join(f"{n} x{r:.1f}" for n, r in row["ratio"].items())
  floor = row.get("floor_fraction")
  print(f"{row['shape']:28s}{rule:13s}{row['mode']:8s} {times}  |  {ratios}"
        + ("" if floor is None else f"  |  {100 * floor:.0f}% of the floor"), flush=True)


def _call(name, backward):
  def outputs(arrays):
    return chunk_recurrence(*arrays, backend=name)[0]

  return _gradient(outputs) if backward else outputs


def _softmax_call(backward):
  implementation = "cudnn" if jax.default_backend() == "gpu" else None

  def outputs(arrays):
    return jax.nn.dot_product_attention(arrays.q, arrays.k, arrays.v, is_causal=True,
                                        implementation=implementation)

  return _gradient(outputs) if backward else outputs


def _gradient(outputs):
  return jax.grad(lambda arrays: jnp.sum(jnp.sin(outputs(arrays).astype(jnp.float32))))


def _value_and_gradients(name):
  def run(arrays):
    o, pull = jax.vjp(lambda a: chunk_recurrence(*a, backend=name)[0], arrays)
    return o, pull(jnp.cos(jnp.arange(o.size, dtype=jnp.float32)).reshape(o.shape).astype(o.dtype))

  return jax.jit(run)


def _reference_values(arrays, do):
  o, pull = jax.vjp(lambda a: chunk_recurrence(*a, backend="reference")[0],
                    Arrays(**dict.fromkeys(Arrays._fields) | arrays))
  return o, pull(do)[0]._asdict()


def _compile(function, arrays):
  return jax.jit(function).lower(arrays).compile()


def _relative(got, want):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


def _memory(compiled):
  analysis = compiled.memory_analysis()
  return int(analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes)


def _floor_seconds(shape, decay, delta, backward):
  """The larger of bytes over bandwidth and FLOPs over peak, each array touched once; None if unknown."""
  peak = next((p for name, p in PEAKS.items() if name in _device()), None)
  if peak is None:
    return None
  B, T, H, D, dtype = shape
  C = default_chunk(decay, delta, D, D, T, dtype, jax.default_backend())
  size = jnp.dtype(dtype).itemsize
  gates = {"none": 0, "scalar": 4, "vector": 4 * D}[decay] + 4 * delta
  states = size * D * D / C
  bytes_ = 4 * D * size + gates
  flops = 4 * C * D + 4 * D * D
  if delta:
    flops = 10 * C * D + 6 * D * D + 4 * C * C * (math.log2(C) - 1) + 14 * C * C
  if backward:
    bytes_ = bytes_ + states + 4 * D * size + states + 3 * D * size + 2 * gates
    flops = flops * 3.6 if delta else flops + 10 * C * D + 8 * D * D
  return B * T * H * max(bytes_ / peak[0], flops / peak[1])


def _device():
  """Name of the device; of a CPU, which jax does not name, the model and the cores at hand."""
  kind = jax.devices()[0].device_kind
  if kind != "cpu":
    return kind
  return f"{os.cpu_count()} cores of {processor.name()}"


def _cpu():
  return jax.default_backend() == "cpu"


if __name__ == "__main__":
  raise SystemExit(main())
