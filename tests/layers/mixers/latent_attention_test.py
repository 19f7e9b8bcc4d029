"""Latent attention by hand in float64, and read with and without making keys and values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import latent_attention
from layers.mixers.latent_attention import LatentAttention
from tests.layers import toy
from tests.layers.mixers import by_hand

# Dims: B batch, T tokens, D model width, H heads, C width without position, R with it, V value width, L latent.

B, T, D, H, C, R, V, L = 2, 6, 5, 3, 4, 2, 3, 6
LAYER = LatentAttention(heads=H, head_dim=C, rope_dim=R, value_dim=V, query_rank=4, latent=L, max_tokens=8)
EPS = 1e-6


def _turn(pair, position):
  """Turns one pair, R = 2: the only plane has the wavelength 2 pi."""
  z = (pair[0] + 1j * pair[1]) * np.exp(1j * position)
  return np.array([z.real, z.imag])


def test_latent_attention_is_its_equations_one_source_at_a_time():
  x = by_hand.tokens(0, B, T, D)
  params = toy.parameters(LAYER, 1, x)
  p, y = by_hand.wide(params), np.zeros((B, T, D))
  for b in range(B):
    rows = x[b].astype(np.float64)
    narrow = by_hand.rms(rows @ p["query_down"]["kernel"], p["query_norm"]["scale"], EPS)
    q = np.einsum("tq,qhw->thw", narrow, p["query"]["kernel"])
    both = rows @ p["latent"]["kernel"]
    c = by_hand.rms(both[:, :L], p["latent_norm"]["scale"], EPS)
    r = np.stack([_turn(both[t, L:], t) for t in range(T)])
    k, v = (np.einsum("tl,lhw->thw", c, p[name]["kernel"]) for name in ("key", "value"))
    for t, h in np.ndindex(T, H):
      turned = _turn(q[t, h, C:], t)
      weight = np.exp([(q[t, h, :C] @ k[s, h] + turned @ r[s]) / np.sqrt(C + R) for s in range(t + 1)])
      y[b, t] += (weight / weight.sum()) @ v[:t + 1, h] @ p["out"]["kernel"][h]
  got, state = jax.jit(LAYER.apply)({"params": params}, x)
  assert by_hand.error(got, y) < 2e-5
  assert {name: a.shape[2:] for name, a in state.items() if name[:2] in ("c_", "r_")} == {"c_BML": (L,), "r_BMR": (R,)}


def test_reading_latent_vectors_is_reading_the_keys_and_values_made_of_them():
  draw = np.random.default_rng(2)
  normal = lambda *shape: draw.standard_normal(shape, np.float32)
  args = (normal(B, T, H, C), normal(B, T, H, R), normal(B, T, L), normal(B, T, R), normal(L, H, C), normal(L, H, V))
  mask = np.tril(np.ones((B, T, T), bool))
  score = lambda form: jax.jit(jax.value_and_grad(lambda a: jnp.sum(jnp.sin(form(*a, mask)))))
  (got, got_grads), (want, want_grads) = (score(form)(args) for form in (latent_attention.absorbed,
                                                                         latent_attention.expanded))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert by_hand.error(got_grads, want_grads) < 2e-5


def test_a_rotary_width_without_pairs_is_refused():
  for width in (3, 0):
    with pytest.raises(ValueError, match=rf"rope_dim={width} must be even and at least 2"):
      jax.eval_shape(LatentAttention(rope_dim=width).init, jax.random.key(0), by_hand.tokens(3))
