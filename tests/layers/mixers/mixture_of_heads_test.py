"""A mixture of heads against one reader, one choice and one source at a time, and against plain attention."""

import functools

import jax
import numpy as np
import pytest

from layers.mixers.attention import Attention
from layers.mixers.mixture_of_heads import MixtureOfHeads
from layers.moe.deepseek import DeepSeek
from layers.moe.gshard import GShard
from layers.moe.recurrent import Recurrent
from layers.moe.soft import Soft
from tests.layers import toy
from tests.layers.mixers import by_hand

# Dims: B batch, T tokens, D model width, E experts, K experts per token, G heads of keys, C head width.

B, T, D, E, G, C = 2, 7, 5, 4, 2, 4


@functools.cache
def _layer(experts=E, top_k=2, rope_theta=10_000.0):
  """Returns (layer, drawn parameters, jitted apply)."""
  layer = MixtureOfHeads(router=functools.partial(GShard, top_k=top_k), experts=experts, groups=G, head_dim=C,
                         max_tokens=8, rope_theta=rope_theta)
  params = toy.parameters(layer, 0, by_hand.tokens(0, B, T, D))
  return layer, params, jax.jit(layer.apply)


def test_each_choice_is_a_set_of_heads_that_reads_the_shared_keys():
  _, params, run = _layer(rope_theta=0.0)
  x = by_hand.tokens(1, B, T, D)
  p, y = by_hand.wide(params), np.zeros((B, T, D))
  k, v = (np.einsum("btd,dgc->btgc", x.astype(np.float64), p[name]["kernel"]) for name in ("key", "value"))
  for b, t in np.ndindex(B, T):
    row = x[b, t].astype(np.float64)
    logits = row @ p["router"]["logits"]["kernel"]
    best = np.argsort(-logits)[:2]
    for e, gate in zip(best, np.exp(logits[best]) / np.exp(logits[best]).sum()):
      q = (row @ p["experts_query"]["kernel"][e]).reshape(G, C)
      read = np.zeros((G, C))
      for g in range(G):
        weight = np.exp([q[g] @ k[b, s, g] / np.sqrt(C) for s in range(t + 1)])
        read[g] = (weight / weight.sum()) @ v[b, :t + 1, g]
      y[b, t] += gate * read.reshape(-1) @ p["experts_out"]["kernel"][e]
    y[b, t] += p["bias"]
  assert by_hand.error(run({"params": params}, x)[0], y) < 2e-5


def test_one_expert_is_plain_attention():
  layer, params, run = _layer(experts=1, top_k=1)
  plain = Attention(heads=G, head_dim=C, max_tokens=8)
  kernels = {"query": params["experts_query"]["kernel"].reshape(D, G, C), "key": params["key"]["kernel"],
             "value": params["value"]["kernel"], "out": params["experts_out"]["kernel"].reshape(G, C, D)}
  x = by_hand.tokens(2, B, T, D)
  want, _ = jax.jit(plain.apply)({"params": {name: {"kernel": a} for name, a in kernels.items()}}, x)
  got, state = run({"params": params}, x)
  np.testing.assert_allclose(got - params["bias"][None, None], want, atol=5e-6)
  assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, _layer(E)[0].init_state(B))


def test_the_names_of_experts_mean_nothing():
  _, params, run = _layer()
  new = np.random.default_rng(3).permutation(E)
  renamed = {**params, "router": {"logits": {"kernel": params["router"]["logits"]["kernel"][:, new]}},
             **{name: {"kernel": params[name]["kernel"][new]} for name in ("experts_query", "experts_out")}}
  x = by_hand.tokens(4, B, T, D)
  np.testing.assert_allclose(run({"params": renamed}, x)[0], run({"params": params}, x)[0], atol=2e-6)


@pytest.mark.parametrize("router, message", [
    (Soft, r"router=Soft chooses a varying number of experts"),
    (Recurrent, r"router=Recurrent carries from layer to layer"),
    (functools.partial(DeepSeek, top_k=9), r"top_k=9 must be from 1 to experts=4"),
])
def test_routers_that_do_not_fit_are_refused(router, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(MixtureOfHeads(router=router).init, jax.random.key(0), by_hand.tokens(5))
