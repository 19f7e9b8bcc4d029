"""One of two processes that train one sharded array together: saving_pair.py WORKDIR PORT INDEX STEPS."""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp

from research import checkpoint
from research import interrupt
from research import metrics


def main(workdir, port, index, steps):
  jax.config.update("jax_num_cpu_devices", 2)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.sharding.NamedSharding(mesh, jax.P("data"))
  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  init = jax.jit(lambda: {"w": jnp.arange(32.0).reshape(8, 4), "key": jax.random.key(0)},
                 out_shardings={"w": sharded, "key": everywhere})
  train_step = jax.jit(lambda state: state | {"w": jnp.sin(3 * state["w"]) + 1}, donate_argnums=0)

  state = init()
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
  saver = checkpoint.Checkpoints(pathlib.Path(workdir) / "ckpt", identity={"config_id": "pair", "data": "none"})
  restored = saver.restore(abstract)
  step, state = restored or (0, state)
  print("from", step, flush=True)
  lines = metrics.MetricsFile(pathlib.Path(workdir) / "metrics.jsonl", step if restored else None)
  with interrupt.Interrupt() as stop:
    while step < steps and not stop.at(step):
      state = train_step(state)
      step += 1
      lines.write({"step": step})
      if step % 5 == 0:
        saver.save(step, state)
      time.sleep(0.05)  # a step long enough for a signal to land in
    saver.save(step, state)
    saved = saver.wait()
  print("at", step, checkpoint.params_sha256(state), flush=True)
  saver.close()
  return 0 if step == steps else 42 if saved else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
