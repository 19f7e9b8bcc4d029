"""One call of research.run from resolved config to files: workdir, training, what is left behind.

    config.json  env.json  model_table.csv  metrics.jsonl  ckpt/  figures/loss.png
    samples.txt  summary.md  final.json  (with diagnostics: depth.jsonl  figures/depth.png
    and for a model that routes: routing.jsonl  figures/routing.png  figures/recursions.png)
"""

import contextlib
import functools
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from research import arrays
from research import config as configs
from research import count, depth_plot, exit_codes, growth, loggers, manifest, metrics, model_table, monitor, plots
from research import program as programs
from research import routing_plot, sample, seeds as many
from research.checkpoint import CheckpointError, newest
from research.errors import ConfigError, shown
from research.progress import Progress
from research.run_lock import RunLock, WorkdirBusy
from research.train import train


def dry_run(config) -> int:
  """Prints the resolved config, its id, and the model in numbers; computes nothing."""
  program = programs.make(config)
  print(configs.text_of(config))
  print(f"config id {configs.id_of(config)}")
  print(model_table.as_text(model_table.rows(program)))
  return exit_codes.DONE


def run(given, name, config, seeds, directory: pathlib.Path, measure=None) -> int:
  """Trains, evaluates and samples; returns the exit code.

  Args:
    given: flags of the command.
    name: of the experiment.
    config: with every setting.
    seeds: whole numbers, or () for the one in the config.
    directory: of the run.
    measure: the experiment's `measure(program, state)`, or None.
  """
  first = config.copy_and_resolve_references()
  if seeds:
    first.seed = seeds[0]
  program = programs.make(first)
  _check_directory(directory, config, given)
  try:
    if given.eval_only:
      return _evaluate_all(program, first, seeds, directory)
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
      if jax.process_index() == 0:
        stack.enter_context(RunLock(directory))
        if given.fresh:
          _set_aside(directory)
      _write(directory, "config.json", configs.text_of(config))
      _write(directory, "env.json", json.dumps(monitor.environment(), indent=2))
      if not seeds:
        return train_models(name, program, config.seed, directory, [directory], log=given.log, measure=measure)
      return _several(given, name, first, program, seeds, directory, measure)
  except (CheckpointError, WorkdirBusy) as error:
    print(f"error: {error}", file=sys.stderr)
  except OSError as error:
    print(f"error: the run cannot write to {str(directory)!r}: {error}; choose another --workdir.",
          file=sys.stderr)
  return exit_codes.CRASH


def _several(given, name, config, single, seeds, directory, measure):
  """Trains all seeds, vmapped or in turn; what was chosen first stays chosen."""
  record = directory / "seeds.json"
  vmapped = None
  if record.is_file():
    if json.loads(record.read_text())["vmapped"]:
      vmapped = programs.make(config, seeds=len(seeds))
  elif given.vectorize == "auto":
    vmapped = many.faster(config, seeds, print)
  elif given.vectorize == "always":
    vmapped = programs.make(config, seeds=len(seeds))
  _write(directory, "seeds.json", json.dumps({"seeds": seeds, "vmapped": vmapped is not None}))
  outputs = [directory / f"seed_{seed}" for seed in seeds]
  for out in outputs:
    out.mkdir(exist_ok=True)
  if vmapped is not None:
    code = train_models(name, vmapped, jnp.asarray(seeds), directory, outputs, log=given.log, measure=measure)
  else:
    for seed, out in zip(seeds, outputs):
      code = train_models(name, single, seed, out, [out], log=given.log, measure=measure)
      if code != exit_codes.DONE:
        break
  if code == exit_codes.DONE and not jax.process_index():
    _compare(seeds, outputs, directory)
  return code


def _compare(seeds, outputs, directory):
  """Writes results.csv, one line per seed and metric, and says how far the seeds lie apart."""
  finals = [json.loads((out / "final.json").read_text()) for out in outputs]
  names = [k for k in finals[0] if k.startswith("eval/")]
  lines = [f"{seed},{k},{final[k]!r}" for seed, final in zip(seeds, finals) for k in names]
  _write(directory, "results.csv", "\n".join(["seed,metric,value", *lines, ""]))
  for k in names:
    values = np.asarray([final[k] for final in finals], np.float64)
    spread = f" +- {np.std(values, ddof=1):.4f} (standard deviation)" if len(values) > 1 else ""
    print(f"{k} over {len(values)} seeds: {np.mean(values):.4f}{spread}")


def train_models(name, program, seed, directory, outputs, *, log="jsonl", measure=None, progress=None,
                 table=None, drawn=10_000) -> int:
  """Trains one program, of one model or of a vmapped group, and writes what it leaves behind.

  Args:
    name: of the experiment.
    program: as research/program.py makes it.
    seed: one int, or the array of ints of a vmapped group.
    directory: for the checkpoints.
    outputs: one directory per model, for its metrics, figures and final.json, which is written last.
    log: where metrics go besides metrics.jsonl.
    measure: (program, state of one model) -> {metric: number}, added to final.json; or None. Arrays go to arrays.npz.
    progress: shows where the run is; None makes a bar or lines.
    table: directory of model_table.csv, `directory` unless given.
    drawn: how many of the models also leave figures and a sample.
  """
  config, task = program.config, program.task
  identity = identity_of(program, seed)
  finals = [out / "final.json" for out in outputs]
  if all(final.is_file() for final in finals):
    for final in finals:
      print(f"finished already: {final.read_text()}\nin {final.parent}; --fresh trains it again.")
    return exit_codes.DONE
  baselines = task.baselines() if hasattr(task, "baselines") else {}
  unit = "nats per byte" if baselines else "nats"
  print(f"{name} in {directory}: {count.size(program.abstract.params) // max(1, program.seeds):,} parameters, "
        f"{config.optim.steps} steps of {program.tokens_per_step:,} tokens")
  for label, loss in baselines.items():
    print(f"  {label} baseline {loss:.4f} {unit} ({loss / np.log(2):.4f} bits)")
  begun = time.monotonic()
  with contextlib.ExitStack() as stack:
    write = _dashboard(log, directory, config, stack)
    progress = stack.enter_context(progress or Progress(config.optim.steps))
    begin = None
    if growth.needed(config, directory):
      small, seed_of_small = program.small, seed + growth.SHIFT
      outcome = train(small, seed_of_small, directory / "small", [out / "small" for out in outputs],
                      identity_of(small, seed_of_small), progress.say, progress)
      if outcome.code != exit_codes.DONE:
        return outcome.code
      begin = functools.partial(growth.grown, small, program, outcome.state,
                                batches=growth.batches(program, seed_of_small))
    outcome = train(program, seed, directory, outputs, identity, progress.say, progress, write, begin)
  if outcome.code != exit_codes.DONE or jax.process_index():
    return outcome.code
  # Counting traces the step once more; before training it would only be in the way.
  table = table or directory
  if not (table / "model_table.csv").is_file():
    _write(table, "model_table.csv", model_table.as_csv(model_table.rows(program)))
  for i, (out, final) in enumerate(zip(outputs, outcome.finals)):
    state = jax.tree.map(lambda x: x[i], outcome.state) if program.seeds else outcome.state
    if measure is not None:
      final |= arrays.kept(out, measure(program, state))
    lines = _leave_behind(name, program, state, out, final, baselines, unit, draw=i < drawn)
    lines.append(f"{time.monotonic() - begun:.0f} s in this call, peak memory "
                 f"{monitor.peak_memory_gb():.2f} GB")
    _write(out, "summary.md", "\n".join([f"# {name}", "", *(f"- {line}" for line in lines), ""]))
    print("\n".join(lines))
    _write(out, "final.json", json.dumps(final, indent=2))
    print(f"files in {out}")
  return exit_codes.DONE


def _dashboard(log, directory, config, stack):
  """Returns the function that also gets the first model's records, or None."""
  if log == "jsonl" or jax.process_index():
    return None
  try:
    if log == "tensorboard":
      write, close = loggers.tensorboard(directory / "tensorboard")
    else:
      write, close = loggers.wandb(directory / "wandb", configs.id_of(config), config.to_dict())
  except ValueError as error:
    raise ConfigError(str(error)) from error
  stack.callback(close)
  return write


def _leave_behind(name, program, state, out, final, baselines, unit, draw):
  """Writes samples and the figure of one model; returns the lines of its summary."""
  lines = [f"validation loss {final['eval/loss']:.4f} {unit}"]
  if unit == "nats per byte":
    lines[0] += f" ({final['eval/loss'] / np.log(2):.4f} bits per byte)"
  lines += [f"{k.removeprefix('eval/')} {final[k]:.4f} on validation" for k in final
            if k.startswith("eval/") and k != "eval/loss"]
  lines += [f"parameters sha256 {final['params_sha256']}"]
  if final["skipped"] or final["recompiled"]:
    lines.append(f"{final['skipped']} steps skipped, {final['recompiled']} recompilations")
  if not draw:
    return lines
  with contextlib.suppress(OSError):
    plots.loss_curve(metrics.read(out / "metrics.jsonl"), out / "figures" / "loss.png",
                     title=name, unit=unit, lines=baselines)
    lines.append(f"figure {out / 'figures' / 'loss.png'}")
    if program.config.train.diagnostics and (records := metrics.read(out / "depth.jsonl")):
      depth_plot.by_depth(records, out / "figures" / "depth.png", title=name)
      lines.append(f"figure {out / 'figures' / 'depth.png'}")
      drawn = routing_plot.figures(metrics.read(out / "routing.jsonl"), out / "figures", title=name)
      lines += [f"figure {path}" for path in drawn]
  text = _sample(program, state)
  if text:
    _write(out, "samples.txt", text)
    print(f"--- sample\n{text}\n---")
  return lines


def _sample(program, state):
  """Returns the prompt and what the model makes of it, where the task is text."""
  node, task = program.config.sample, program.task
  if not node.tokens or not hasattr(task, "decode"):
    return ""
  prompt = task.encode(node.prompt)
  variables = {"params": state.params, **state.extra}
  drawn = sample.generate(program.model, variables, jnp.asarray(prompt)[None],
                          jax.random.key(program.config.seed), length=node.tokens,
                          temperature=node.temperature)
  return task.decode(np.concatenate([prompt, np.asarray(drawn[0])]))


def identity_of(program, seed) -> dict:
  """What a checkpoint must agree on to be continued."""
  seeds = ",".join(str(s) for s in np.atleast_1d(seed))
  return {"config_id": f"{configs.id_of(program.config)} seed {seeds}",
          "data": program.task.fingerprint()}


def _evaluate_all(program, config, seeds, directory):
  """Evaluates the newest checkpoint of a run, or of each run of a group of seeds."""
  record = directory / "seeds.json"
  if not seeds:
    _evaluate(program, config.seed, directory)
  elif record.is_file() and json.loads(record.read_text())["vmapped"]:
    _evaluate(programs.make(config, seeds=len(seeds)), seeds, directory)
  else:
    for seed in seeds:
      _evaluate(program, seed, directory / f"seed_{seed}")
  return exit_codes.DONE


def _evaluate(program, seed, directory):
  """Prints the validation metrics of the newest checkpoint; changes nothing."""
  found = newest(directory / "ckpt", identity_of(program, seed), program.abstract)
  if found is None:
    raise ConfigError(f"--eval_only: there is no checkpoint in {str(directory)!r}; train first.")
  step, state = found
  for key, value in program.evaluated(state, 0).items():
    print(f"{directory} step {step} {key} {np.array2string(np.asarray(value), precision=6)}")


def _check_directory(directory, config, given):
  """Refuses a workdir that holds the run of another config."""
  path = directory / "config.json"
  if path.is_file() and not given.fresh:
    theirs = ConfigDict(json.loads(path.read_text()))
    if configs.id_of(theirs) != configs.id_of(config):
      raise ConfigError(f"--workdir={str(directory)!r} holds another config: {_difference(theirs, config)}; "
                        "choose another, or --fresh to set it aside.")


def _difference(theirs, ours, at="config") -> str:
  """Returns the first key in which two configs differ, with both values."""
  for key in sorted({*theirs, *ours}):
    one, other = theirs.get(key), ours.get(key)
    if isinstance(one, ConfigDict) and isinstance(other, ConfigDict):
      if found := _difference(one, other, f"{at}.{key}"):
        return found
    elif key not in configs.UNNAMED and _as_json(one) != _as_json(other):
      return f"{at}.{key} is {shown(one)} there and {shown(other)} here"
  return ""


def _as_json(value) -> str:
  """Returns the text that config.json holds for a value: of a tuple and of a list the same."""
  return value.to_json() if isinstance(value, ConfigDict) else json.dumps(value)


def _set_aside(directory):
  """Moves what an earlier run left into a folder of its own, so that nothing is lost."""
  old = directory / f"earlier-{time.strftime('%Y%m%d-%H%M%S')}"
  old.mkdir()
  for path in directory.iterdir():
    if path.name != "run.lock" and not path.name.startswith("earlier-"):
      path.rename(old / path.name)


def _write(directory, name, text):
  if jax.process_index() == 0:
    manifest.write_atomically(directory / name, text.encode())
