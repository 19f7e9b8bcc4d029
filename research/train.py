"""The training loop: one readable pass from the restored step to the last.

Everything that decides the result happens inside `program.step`; the loop feeds
it batches, writes what it sees, saves, and knows how to stop. A run stopped
anywhere and started again continues with the same bits.
"""

import collections
import contextlib
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np

from research import diagnostics, exit_codes, lengths, monitor, sharding
from research.checkpoint import Checkpoints, params_sha256
from research.data.prefetch import stream
from research.interrupt import Interrupt
from research.metrics import MetricsFile
from research.postmortem import write_postmortem
from research.watchdog import Watchdog


COMPILE_S = 900  # a step that compiles may take this much longer before it counts as a stall


class Outcome(NamedTuple):
  """How a run ended: its exit code, its last state, and one summary per model."""

  code: int
  state: object
  finals: list[dict]


def train(program, seeds, directory: pathlib.Path, outputs, identity: dict, say, progress,
          dashboard=None, begin=None) -> Outcome:
  """Trains from the newest checkpoint in `directory`/ckpt, or from the seeds.

  Args:
    program: as research/program.py makes it.
    seeds: one int, or the array of ints of a program with an axis of seeds.
    directory: of the run.
    outputs: one directory per model, for its metrics and its depth.jsonl and routing.jsonl.
    identity: what a checkpoint must agree on (config id, data, version).
    say: prints one line.
    progress: shows where the run is.
    dashboard: called with each record of the first model, or None.
    begin: fresh state -> the state to start from, or None for the fresh one.
  """
  config, settings, total = program.config, program.config.train, program.config.optim.steps
  checkpoints = Checkpoints(directory / "ckpt", identity=identity, keep=settings.keep)
  with contextlib.ExitStack() as stack:
    stack.callback(checkpoints.close)
    stop = stack.enter_context(Interrupt())
    watchdog = stack.enter_context(Watchdog(settings.stall_seconds))
    watchdog.beat(allow=COMPILE_S)
    found = checkpoints.restore(program.abstract)
    first, run_step = program.start(None if found else seeds)
    start, state = found or (0, begin(first) if begin else first)
    if found:
      say(f"continuing from step {start}")
    if stop.at(start) and start < total:
      say(f"stopped before step {start + 1}; the same command continues.")
      return Outcome(exit_codes.PREEMPTED, state, [])
    def opened(name):
      made = [MetricsFile(out / name, start if found else None) for out in outputs]
      for file in made:
        stack.callback(file.close)
      return made
    files, depth_files, routing_files, profile = opened("metrics.jsonl"), [], [], None
    if settings.diagnostics:
      depth_files, profile = opened("depth.jsonl"), diagnostics.profile(program)
    batches = _batches(program, seeds, start, stack)
    compiles = monitor.Compiles()
    streaks = collections.deque()
    clock, since, recompiled, evaluated = time.monotonic(), start, 0, None

    for step in range(start + 1, total + 1):
      # The first evaluation compiles.
      watchdog.beat(allow=COMPILE_S if evaluated is None else 0)
      before = compiles.count
      state, streak = run_step(state, next(batches))
      recompiled += compiles.count - before if step > start + 2 else 0
      # Looking two steps back never waits for the device.
      streaks.append(streak)
      if len(streaks) > 2 and np.max(streaks.popleft()) >= settings.nan_patience:
        return _diverged(program, state, directory, say)

      if step % settings.log_every == 0 or step == total:
        records = _records(program, state, step, clock, since, recompiled)
        clock, since = time.monotonic(), step
        _write(files, records, dashboard)
        progress.update(step, np.mean([r["loss"] for r in records]), records[0]["tokens_per_s"])
      every = settings.eval_every
      if step == total or (every and step % every == 0):
        begun = time.monotonic()
        evaluated = _evaluation(program, state, step)
        _write(files, evaluated, dashboard)
        profiled = diagnostics.records(program, profile, state, step) if profile else []
        routed = [record.pop("routing") for record in profiled if "routing" in record]
        if routed and not routing_files:  # whether a model routes shows when it is first looked at
          routing_files = opened("routing.jsonl")
        _write(depth_files, profiled, None)
        _write(routing_files, routed, None)
        say(_spoken(step, evaluated))
        clock += time.monotonic() - begun  # tokens per second are those of training
      stopping = stop.at(step)
      if stopping or step == total or step % settings.save_every == 0:
        for file in files + depth_files + routing_files:
          file.sync()
        checkpoints.save(step, state)
      if stopping and step < total:
        saved = checkpoints.wait()
        say(f"stopped at step {step}; the same command continues." if saved else
            f"stopped at step {step}, but the save failed: {checkpoints.error}")
        return Outcome(exit_codes.PREEMPTED if saved else exit_codes.CRASH, state, [])
    checkpoints.wait()
    if np.max(np.asarray(state.streak)) >= settings.nan_patience:
      return _diverged(program, state, directory, say)

  if evaluated is None:  # the run was cut between its last save and its end
    evaluated = _evaluation(program, state, total)
    profiled = diagnostics.records(program, profile, state, total) if profile else []
  evaluated = [e | diagnostics.summary(p) for e, p in zip(evaluated, profiled)] or evaluated
  finals = _finals(program, state, evaluated, recompiled)
  return Outcome(exit_codes.DONE, state, finals)


def _batches(program, seeds, start, stack):
  """Yields what `program.step` takes: placed batches in order, or None for a device task."""
  if program.task.on_device:
    while True:
      yield None
  ahead = stack.enter_context(stream(lambda step: program.train_batch(seeds, step), start))
  for _, batch in ahead:
    yield program.put_train(batch)


def _evaluation(program, state, step):
  """Returns one record per model; the last one reads all of validation, and sequences of every length."""
  config = program.config
  if step < config.optim.steps:
    found = program.evaluated(state, config.train.eval_batches)
  else:
    found = program.evaluated(state, 0) | lengths.evaluated(program, state)
  return _per_model({"step": step, **found}, max(1, program.seeds))


def _records(program, state, step, clock, since, recompiled):
  """Returns one record per model of the steps since the last logging step."""
  sums = jax.device_get(state.sums)  # waits for the device, so the clock is honest
  wall = time.monotonic() - clock
  means = {k: _mean(v) for k, v in sums.items()}
  tokens = program.tokens_per_step
  record = {"step": step, "tokens": step * tokens, "loss": means.pop("loss"), **means,
            "skipped": np.asarray(state.skipped), "recompiled": recompiled,
            "wall_s": round(wall, 3),
            "tokens_per_s": round(tokens * max(1, program.seeds) * (step - since) / max(wall, 1e-9), 1)}
  return _per_model(record, max(1, program.seeds))


def _mean(pair):
  """Divides sums by weights; nothing counted (all steps refused) is nan, not an error."""
  pair = np.asarray(pair, np.float64)
  return np.divide(pair[..., 0], pair[..., 1], where=pair[..., 1] > 0,
                   out=np.full(pair.shape[:-1], np.nan))


def _per_model(record, models):
  """Takes a record apart along the axis of seeds; plain numbers belong to every model."""
  pick = lambda v, i: np.asarray(v).reshape(-1)[i].item() if np.size(v) == models > 1 else (
      np.asarray(v).item())
  return [{k: pick(v, i) for k, v in record.items()} for i in range(models)]


def _write(files, records, dashboard):
  for file, record in zip(files, records):
    file.write(record)
  if dashboard is not None:
    dashboard(records[0])


def _spoken(step, records):
  losses = " ".join(f"{r['eval/loss']:.4f}" for r in records)
  return f"step {step}: validation loss {losses}"


def _finals(program, state, evaluated, recompiled):
  """Returns what final.json of every model says: step, last evaluation, digest of its parameters."""
  finals = []
  for i, values in enumerate(evaluated):
    params = jax.tree.map(lambda x: x[i], state.params) if program.seeds else state.params
    finals.append({**values, "recompiled": recompiled,
                   "skipped": int(np.asarray(state.skipped).reshape(-1)[i]),
                   "params_sha256": params_sha256(params)})
  return finals


def _diverged(program, state, directory, say):
  """Saves the state and the batch that broke it; the guard kept the weights as they were."""
  streak, patience = int(np.max(np.asarray(state.streak))), program.config.train.nan_patience
  # Steps after the last one that patience allowed were refused unseen; step back over them.
  back = 1 + streak - patience
  state = state.replace(step=state.step - back, cursor=state.cursor - back)
  worst = int(np.argmax(np.asarray(state.streak)))
  step, cursor = (int(np.asarray(x).reshape(-1)[worst]) for x in (state.step, state.cursor))
  batch = {} if program.task.on_device else program.task.batch("train", cursor)
  write_postmortem(directory / "postmortem", {"state": state, "batch": batch})
  say(f"diverged: {patience} steps in a row, up to step {step + 1}, had a loss or gradient that is "
      f"not finite; the weights before them and the last batch are in {directory / 'postmortem'}. "
      "Try a smaller config.optim.lr or a longer warmup.")
  return Outcome(exit_codes.DIVERGED, state, [])
