"""A mixture of attention heads: each token chooses its query and output maps, keys and values are shared.

    for the K experts e_1..K of token t, with gates g_k:        q_tk = rot(x_t W_Q[e_k])
    a_tk = sum_{s <= t} softmax_s(q_tk . k_s / sqrt(C)) v_s        k_s = rot(x_s W_K), v_s = x_s W_V
    y_t = sum_k g_k a_tk W_O[e_k] + b

An expert has G heads of width C, one for each head of the shared keys and values, so the cache does
not grow with the number of experts. Every expert's maps are computed for every token and the chosen ones kept,
which is exact and, for few experts, cheap beside moving tokens.

Reference: Shen et al., "JetMoE: Reaching Llama2 Performance with 0.1M Dollars", 2024, sections 2.1 and 2.2,
after Zhang et al., "Mixture of Attention Heads", 2022.
"""

from collections.abc import Callable
import functools

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import rope, segments, token_cache
from layers.dense import Dense
from layers.moe.gshard import GShard
from layers.routing import ExpertKernel, make, only, show

# Dims: B batch, T tokens, N = B T, D model width, E experts, K experts per token, G heads of keys, C head width.

TINY = dict(router=functools.partial(GShard, top_k=2), experts=3, groups=2)


def chosen_queries(x_ND, kernel_EDF, indices_NK):
  """Returns [N, K, F], each token through the maps that it chose."""
  q_NEF = jnp.einsum("nd,edf->nef", x_ND, kernel_EDF)
  return jnp.take_along_axis(q_NEF, indices_NK[..., None], axis=1)


def mixed_outputs(a_NKF, kernel_EFD, gates_NE, indices_NK):
  """Returns [N, D], the gated sum of what the chosen maps make of their own heads."""
  gates_NK = jnp.take_along_axis(gates_NE, indices_NK, axis=1)
  hot_NKE = jax.nn.one_hot(indices_NK, kernel_EFD.shape[0], dtype=a_NKF.dtype)
  a_NEF = jnp.einsum("nkf,nke->nef", a_NKF * gates_NK[..., None].astype(a_NKF.dtype), hot_NKE)
  return jnp.einsum("nef,efd->nd", a_NEF, kernel_EFD)


class MixtureOfHeads(nn.Module):
  """The mixer.

  Attributes:
    router: factory of a router with a fixed number of choices and without carry.
    experts: E.
    groups: G, heads of keys and values, and of each expert.
    head_dim: C.
    max_tokens: how far back decoding can look.
    rope_theta: base of the rotary wavelengths; 0 leaves positions out.
    train: handed to the router.
    dtype: dtype of the products; softmax and router are float32.
  """

  router: Callable[..., nn.Module] = GShard
  experts: int = 4
  groups: int = 2
  head_dim: int = 32
  max_tokens: int = 256
  rope_theta: float = 10_000.0
  train: bool = False
  dtype: jnp.dtype = jnp.float32

  def init_state(self, batch: int):
    """Returns an empty cache."""
    head = (self.groups, self.head_dim)
    return token_cache.empty(batch, self.max_tokens, dict(k_BMGC=head, v_BMGC=head), self.dtype)

  @nn.compact
  def __call__(self, x_BTD, state=None, segment_ids=None):
    B, T, D = x_BTD.shape
    G, C = self.groups, self.head_dim
    x_ND = rearrange(x_BTD, "b t d -> (b t) d")
    router = make(self.router, self.experts, T, self.train)
    if getattr(router, "needs_carry", False):
      raise ValueError(f"router={type(router).__name__} carries from layer to layer, which only a channel mixer does; "
                       "take another router for attention heads.")
    real_N = None if segment_ids is None else segment_ids.reshape(-1) >= 0
    routing = router(x_ND, None, real_N)
    if routing.indices_NK is None:
      raise ValueError(f"router={type(router).__name__} chooses a varying number of experts; attention heads need a "
                       "fixed one, such as gshard.GShard's.")
    kernel = lambda name, *shape: ExpertKernel((self.experts, *shape), name=name)().astype(self.dtype)
    q_NKF = chosen_queries(x_ND.astype(self.dtype), kernel("experts_query", D, G * C), routing.indices_NK)
    # Heads that read the same keys lie side by side, as grouped attention takes them.
    q_BTHC = rearrange(q_NKF, "(b t) k (g c) -> b t (g k) c", b=B, g=G)
    project = lambda name: Dense((G, C), use_bias=False, dtype=self.dtype, name=name)(x_BTD)
    k_BTGC, v_BTGC = project("key"), project("value")

    cache = self.init_state(B) if state is None else state
    ids_BT = jnp.zeros((B, T), jnp.int32) if segment_ids is None else segment_ids
    position_BT, now_B = segments.positions(ids_BT, cache["seen_B"])
    if self.rope_theta:
      q_BTHC, k_BTGC = (rope.rotate(a, position_BT, self.rope_theta) for a in (q_BTHC, k_BTGC))
    sources = token_cache.extend(cache, dict(k_BMGC=k_BTGC, v_BMGC=v_BTGC), ids_BT, position_BT, now_B,
                                 first=state is None)
    a_BTHC = jax.nn.dot_product_attention(q_BTHC, sources.arrays["k_BMGC"], sources.arrays["v_BMGC"],
                                          mask=sources.mask_BTS[:, None])
    a_NKF = rearrange(a_BTHC, "b t (g k) c -> (b t) k (g c)", g=G)
    y_ND = mixed_outputs(a_NKF, kernel("experts_out", G * C, D), routing.gates_NE, routing.indices_NK)
    y_ND += self.param("bias", nn.initializers.zeros, (D,)).astype(self.dtype)[None]
    show(self, router, routing._replace(gates_NE=only(routing.gates_NE, real_N)))
    return rearrange(y_ND, "(b t) d -> b t d", b=B), sources.cache
