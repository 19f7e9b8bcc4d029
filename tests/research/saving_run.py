"""A toy run that saves every step, and a driver that forks it and hurts it at chosen instants.

Importing jax takes longer than the run, so one process imports it and forks each run before any device exists.
Usage: saving_run.py PLAN, a JSON list of trials (workdir, steps, width; `signals`, pairs of seconds to wait and a
name, sent after the run has reported `after` lines; slow_hash, distributed); prints a JSON list of results. Everything runs in locale C, without
HOME, and with a clock that jumps back an hour, because the test that starts it says so.
"""

import functools
import gc
import json
import os
import pathlib
import signal
import socket
import sys
import time

from absl import logging
import jax
import jax.numpy as jnp

from research import checkpoint
from research import exit_codes
from research import interrupt
from research import manifest
from research import metrics
from research import run_lock


def init(width):
  return {"w": jnp.linspace(-1.0, 1.0, width * width).reshape(width, width), "key": jax.random.key(0),
          "step": jnp.int32(0)}


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state):
  noise = jax.random.normal(jax.random.fold_in(state["key"], state["step"]), state["w"].shape)
  w = state["w"] + 0.1 * jnp.sin(3 * state["w"]) + 0.01 * noise
  return {"w": w, "key": state["key"], "step": state["step"] + 1}, jnp.mean(w**2)


def run(workdir, *, steps, width, report):
  workdir = pathlib.Path(workdir)
  with run_lock.RunLock(workdir), interrupt.Interrupt() as stop:
    saver = checkpoint.Checkpoints(workdir / "ckpt", identity={"config_id": "toy", "data": "none"})
    restored = saver.restore(jax.eval_shape(functools.partial(init, width)))
    step, state = restored or (0, init(width))
    lines = metrics.MetricsFile(workdir / "metrics.jsonl", step if restored else None)
    if restored is None:
      lines.write({"config_id": "toy"})
    report(f"from {step}")
    while step < steps and not stop.at(step):
      state, loss = train_step(state)
      step += 1
      lines.write({"step": step, "loss": loss, "time": time.time()})
      saver.save(step, state)
      report(f"saving {step}")
    report(f"stopped {step}")
    saver.save(step, state)
    saved = saver.wait()
    saver.close()
    lines.close()
    if step < steps:
      return exit_codes.PREEMPTED if saved else exit_codes.CRASH
    (workdir / "final.txt").write_text(checkpoint.params_sha256(state))
    return exit_codes.DONE


def fork_run(workdir, trial, report_fd):
  """Returns the pid of a child that runs and exits with the code of `run`."""
  pid = os.fork()
  if pid:
    return pid
  try:
    real, start = time.time, time.monotonic()
    time.time = lambda: real() - 3600.0 * (time.monotonic() - start > 0.2)
    if trial.get("distributed"):
      with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = "localhost:%d" % probe.getsockname()[1]
      jax.distributed.initialize(address, num_processes=1, process_id=0)
    if trial.get("slow_hash"):
      real_write = manifest.write

      def slow_write(*args, **kwargs):
        time.sleep(trial["slow_hash"])
        return real_write(*args, **kwargs)

      manifest.write = slow_write
    code = run(workdir, steps=trial["steps"], width=trial["width"],
               report=lambda line: os.write(report_fd, f"{line}\n".encode()))
  except BaseException as error:  # the child must never return into the driver
    os.write(2, f"child: {type(error).__name__}: {error}\n".encode())
    code = 99
  os._exit(code)


def hurt(workdir, trial):
  """Runs once, sends the signals of the trial, and returns what the run reported and how it ended."""
  read, write = os.pipe()
  pid = fork_run(workdir, trial, write)
  os.close(write)
  with open(read, buffering=1) as reports:
    seen = [reports.readline().strip() for _ in range(trial.get("after", 1))]
    for wait, name in trial["signals"]:
      time.sleep(wait)
      os.kill(pid, getattr(signal, name))
    signalled = time.monotonic()
    seen += [line.strip() for line in reports]
  _, status = os.waitpid(pid, 0)
  return {"seen": seen, "code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - signalled}


def main(plan):
  logging.set_verbosity(logging.INFO)  # as an absl application does: orbax's lines must not reach the terminal
  plan = json.loads(plan)
  # A run spends most of its time compiling; the first one does it for all.
  jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(plan[0]["workdir"]).parent / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  # Looking for garbage among all that was imported takes a good part of a child's time.
  gc.freeze()
  gc.set_threshold(100_000, 50, 100)
  results = []
  for trial in plan:
    result = hurt(trial["workdir"], trial) if trial["signals"] else {}
    calm = hurt(trial["workdir"], {"steps": trial["steps"], "width": trial["width"], "signals": []})
    folder = pathlib.Path(trial["workdir"])
    result |= {"resumed": calm["seen"][0], "resumed_code": calm["code"], "final": (folder / "final.txt").read_text(),
               "lines": metrics.deterministic_lines(folder / "metrics.jsonl"),
               "quarantine": (folder / "ckpt" / "quarantine").exists()}
    results.append(result)
  print(json.dumps(results))


if __name__ == "__main__":
  main(sys.argv[1])
