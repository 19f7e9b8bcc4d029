"""Hash routing: a fixed, unlearned function of the token chooses; the control of every learned router.

    bits_i = [x . r_i > 0], i = 1..16, r_i fixed normal directions
    e_1 = hash(bits) mod E, and the K - 1 experts after it; every gate is 1 / K

The nearer two tokens, the likelier they meet the same expert, but nothing adapts, to the data
or to the load. Departure: the paper hashes the token's id, which a layer does not see.

Reference: Roller et al., "Hash Layers for Large Sparse Models", 2021.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from layers import routing

# Dims: N tokens, D model width, E experts, K experts per token, P bits.

BITS = 16


def code(x_ND, seed: int):
  """Returns [N], 32 well mixed bits of the side on which x lies of 16 fixed planes."""
  planes_DP = np.random.default_rng(seed).standard_normal((x_ND.shape[-1], BITS)).astype(np.float32)
  side_NP = jnp.matmul(x_ND.astype(jnp.float32), planes_DP, precision=routing.HIGHEST) > 0
  bits_N = jnp.sum(side_NP.astype(jnp.uint32) << jnp.arange(BITS, dtype=jnp.uint32)[None], axis=1)
  bits_N = (bits_N ^ (bits_N >> 7)) * jnp.uint32(0x9E3779B1)  # golden ratio times 2^32
  return bits_N ^ (bits_N >> 15)


class HashRouting(nn.Module):
  """The router.

  Attributes:
    experts: E.
    top_k: K.
    seed: of the planes.
  """

  experts: int = 8
  top_k: int = 1
  seed: int = 0

  @nn.compact
  def __call__(self, x_ND, carry=None, real_N=None):
    routing.check_top_k(self.top_k, self.experts)
    first_N = (code(x_ND, self.seed) % jnp.uint32(self.experts)).astype(jnp.int32)
    indices_NK = (first_N[:, None] + jnp.arange(self.top_k)[None]) % self.experts
    gates_NE = routing.scatter(jnp.full(indices_NK.shape, 1 / self.top_k), indices_NK, self.experts)
    return routing.Routing(gates_NE, indices_NK, {}, {}, carry)
