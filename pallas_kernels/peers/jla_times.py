"""Times jax-linear-attention, in a process of its own because it pins another jax.

    python -m pallas_kernels.peers.jla_times FOLDER        started by  python -m pallas_kernels.bench --peers
"""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.peers import protocol

KINDS = {"scalar": "simple_gla", "vector": "gla", "none delta": "deltanet", "scalar delta": "gated_deltanet",
         "vector delta": "kda"}


def main():
  from jla.ops import linear_attention

  def prepare(arrays, rule, dtype):
    inputs = {n: jnp.asarray(x, "float32" if n in ("g", "beta") else dtype) for n, x in arrays.items()}
    do = inputs.pop("do")
    outputs = lambda inputs: linear_attention(KINDS[rule], **inputs)[0]

    @jax.jit
    def gradients(inputs, do):
      o, pull = jax.vjp(outputs, inputs)
      return o, pull(do.astype(o.dtype))[0]

    values_only = jax.jit(outputs)

    def train(values=False):
      results = jax.block_until_ready(gradients(inputs, do))
      return jax.tree.map(lambda x: np.asarray(x, np.float32), results) if values else None

    return dict(forward=lambda: jax.block_until_ready(values_only(inputs)), train=train)

  protocol.serve(jax.devices()[0].device_kind, prepare)


if __name__ == "__main__":
  main()
