r"""Times every token mixer against its own kernel and linear maps: `python -m research.mixer_times`.

Forward and backward of one mixer, and of the parts that it cannot do without: its calls of the kernels and its
products with weights, each on the arrays that reach it inside the mixer. What the mixer takes beyond the sum of the
two is convolutions, norms, gates and memory. Medians of interleaved calls in one process, milliseconds.

    python -m research.mixer_times
    python -m research.mixer_times gla.GLA delta_net.DeltaNet --tokens=512 --csv=times.csv

Recorded 2026-11-21 on 2 AMD EPYC cores in research/results/mixers/mixer-times-jax-0.12.csv and -0.10.csv: with jax
0.12 all take at most 1.24 times their parts but Mamba, 1.84, whose discretisation is B T F N exponentials.
"""

import argparse
import csv
import pathlib
import statistics
import sys
import time

from research import exit_codes, find, flags, settings
from research.errors import ConfigError

# Functions with gradients of their own, by which parts are known in a traced mixer.
KERNELS = ("_recurrence", "run")  # of pallas_kernels/chunk_recurrence and diag_scan
MAPS = ("product", "bit_product")  # of layers/dense.py and bit_linear.py
HEAD = ("mixer", "mixer ms", "kernel ms", "maps ms", "ratio")


def parser():
  made = flags.Parser(prog="python -m research.mixer_times", description=__doc__.splitlines()[0], allow_abbrev=False,
                      formatter_class=argparse.RawDescriptionHelpFormatter, epilog=__doc__.partition("\n\n")[2])
  made.add_argument("names", nargs="*", metavar="NAME", help="mixers; all unless given")
  made.add_argument("--tokens", type=int, default=2048, help="in the one row")
  made.add_argument("--width", type=int, default=128, help="features of the model")
  made.add_argument("--calls", type=int, default=21, help="whose median is a time")
  made.add_argument("--csv", help="file to write the table to")
  return made


def parts(fun, *args):
  """Returns the calls of kernels and of maps in fun(*args): two lists of (function, its arrays).

  The program is run equation by equation, so that every part gets what reaches it there.
  """
  import jax
  from jax.extend import core
  closed = jax.make_jaxpr(fun)(*args)
  known = dict(zip(closed.jaxpr.constvars, closed.consts))
  known |= dict(zip(closed.jaxpr.invars, jax.tree.leaves(args)))
  kernels, maps = [], []
  for eqn in closed.jaxpr.eqns:
    inputs = list({v: None for v in eqn.invars if not isinstance(v, core.Literal)})
    one = core.Jaxpr(constvars=(), invars=inputs, outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects,
                     debug_info=closed.jaxpr.debug_info.with_unknown_names())
    call, arrays = core.jaxpr_as_fun(core.ClosedJaxpr(one, ())), [known[v] for v in inputs]
    known |= dict(zip(eqn.outvars, call(*arrays)))
    body = eqn.params.get("call_jaxpr")
    name = body.jaxpr.debug_info.func_name if body is not None and "vjp" in eqn.primitive.name else ""
    for wanted, found in ((KERNELS, kernels), (MAPS, maps)):
      if name in wanted:
        found.append((call, arrays))
  return kernels, maps


def slopes(calls):
  """Returns a jitted function without arguments: forward and backward of all calls, None if there are none."""
  import jax
  import jax.numpy as jnp
  if not calls:
    return None
  is_number = lambda x: jnp.issubdtype(x.dtype, jnp.inexact)

  def size(numbers, rest):
    total = 0.0
    for (call, _), mine, others in zip(calls, numbers, rest):
      made = call(*(y if x is None else x for x, y in zip(mine, others)))
      total += sum(jnp.sum(jnp.square(jnp.abs(z))) for z in made if is_number(z))
    return total

  numbers = [[x if is_number(x) else None for x in arrays] for _, arrays in calls]
  rest = [[None if is_number(x) else x for x in arrays] for _, arrays in calls]
  step = jax.jit(jax.grad(size))
  return lambda: jax.block_until_ready(step(numbers, rest))


def measure(name: str, tokens: int, width: int, calls: int) -> tuple | None:
  """Returns one row of the table; None for a mixer without a kernel call."""
  import jax
  import jax.numpy as jnp
  cls = find.find("mixer", name, "mixer")
  own = {"width": width, "channels": width, "length": tokens}
  layer = cls(**{field: value for field, value in own.items() if field in find.fields(cls)})
  x_BTD = jax.random.normal(jax.random.key(0), (1, tokens, width))
  variables = jax.jit(layer.init)(jax.random.key(1), x_BTD)
  params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
  apply = lambda params, x_BTD: layer.apply({"params": params, **rest}, x_BTD)[0]
  kernels, maps = parts(apply, params, x_BTD)
  if not kernels:
    return None
  step = jax.jit(jax.grad(lambda params, x_BTD: jnp.sum(jnp.square(apply(params, x_BTD))), argnums=(0, 1)))
  runs = [lambda: jax.block_until_ready(step(params, x_BTD)), slopes(kernels), slopes(maps)]
  spent = [[] for _ in runs]
  for _ in range(calls + 1):  # the first of which compiles
    for run, times in zip(runs, spent):
      begun = time.perf_counter()
      if run is not None:
        run()
      times.append(1e3 * (time.perf_counter() - begun))
  whole, kernel, linear = (statistics.median(times[1:]) for times in spent)
  return name, whole, kernel, linear, statistics.median(a / (b + c) for a, b, c in zip(*(t[1:] for t in spent)))


def main(argv=None) -> int:
  """Runs the command and returns its exit code."""
  try:
    given = parser().parse_args(sys.argv[1:] if argv is None else argv)
    for flag in ("tokens", "width", "calls"):
      if getattr(given, flag) < 1:
        raise ConfigError(f"--{flag}={getattr(given, flag)} must be at least 1.")
    names = given.names or find.names("mixer")
    for name in names:
      find.find("mixer", name, "mixer")
    settings.prepare()
    rows = []
    print(f"{HEAD[0]:40}" + "".join(f"{head:>11}" for head in HEAD[1:]))
    for name in names:
      row = measure(name, given.tokens, given.width, given.calls)
      if row is None:
        print(f"{name:40} calls no kernel")
      else:
        rows.append(row)
        print(f"{name:40}" + "".join(f"{number:11.2f}" for number in row[1:]), flush=True)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return exit_codes.CONFIG
  if given.csv:
    with pathlib.Path(given.csv).open("w", newline="", encoding="utf-8") as file:
      write = csv.writer(file, lineterminator="\n")
      write.writerow(HEAD)
      write.writerows((name, *(f"{number:.3f}" for number in numbers)) for name, *numbers in rows)
  return exit_codes.DONE


if __name__ == "__main__":
  settings.ask_for_huge_pages()
  sys.exit(main())
