"""The mixer against its equations in float64, in attention form, without phase, and counting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mixers import gateloop
from pallas_kernels.chunk_recurrence import chunk_recurrence
from tests.layers import toy
from tests.layers.mixers import by_hand

H, K, V = 2, 3, 4

loop = jax.jit(gateloop.gate_loop)
gla = jax.jit(functools.partial(chunk_recurrence, scale=1.0, return_final_state=True))


@functools.cache
def _layer(phase):
  """Returns (layer, jitted apply)."""
  layer = gateloop.GateLoop(heads=H, key_dim=K, value_dim=V, phase=phase)
  return layer, jax.jit(layer.apply)


def _streams(p, x):
  parts = [by_hand.heads(x @ p[name]["kernel"], H) for name in ("query", "key", "value")]
  dense = lambda name: by_hand.heads(x @ p[name]["kernel"] + p[name]["bias"], H)
  a = by_hand.sigmoid(dense("magnitude"))
  return *parts, a * np.exp(1j * dense("phase")) if "phase" in p else a


def _out(p, x, y):
  y = y.reshape(*x.shape[:2], -1) * by_hand.silu(x @ p["gate"]["kernel"])
  return y @ p["out"]["kernel"]


@pytest.mark.parametrize("phase", [True, False])
def test_the_mixer_is_the_equations_of_its_docstring(phase):
  layer, run = _layer(phase)
  x, state = by_hand.tokens(0), by_hand.state(layer, 1)
  params = {"params": toy.parameters(layer, 2, x)}
  p, wide = by_hand.wide(params["params"]), by_hand.wide(state)
  q, k, v, a = _streams(p, x)
  S = wide["S_BHKV2"] @ np.array([1, 1j]) if phase else wide["S_BHKV"]
  S, last = by_hand.scan(np.repeat(a[..., None], V, -1), k[..., None] * v[..., None, :], S)
  want = _out(p, x, np.einsum("bthk,bthkv->bthv", q, S).real)
  final = dict(S_BHKV2=np.stack([last.real, last.imag], -1)) if phase else dict(S_BHKV=last)
  assert by_hand.error(run(params, x, state), (want, final)) < 1e-5


def test_it_is_attention_with_a_mask_of_complex_decays():
  layer, run = _layer(True)
  x = by_hand.tokens(3)
  params = {"params": toy.parameters(layer, 4, x)}
  p = by_hand.wide(params["params"])
  q, k, v, a = _streams(p, x)
  score = np.zeros((2, H, 9, 9), complex)
  for t in range(9):
    for s in range(t + 1):
      score[:, :, t, s] = np.sum(q[:, t] * k[:, s] * np.prod(a[:, s + 1:t + 1], axis=1), -1)
  want = _out(p, x, np.einsum("bhts,bshv->bthv", score, v).real)
  assert by_hand.error(run(params, x)[0], want) < 1e-5


def test_without_a_phase_it_is_gated_linear_attention_without_its_scale():
  draw = np.random.default_rng(5)
  q, k, z = draw.standard_normal((3, 2, 9, H, K), np.float32)
  v = draw.standard_normal((2, 9, H, V), np.float32)
  S = draw.standard_normal((2, H, K, V), np.float32)
  a = by_hand.sigmoid(z)
  want, last = gla(q, k, v, np.log(a), initial_state=S)
  assert by_hand.error(loop(q, k, v, a, S), (want, last)) < 3e-6
  turned, memory = loop(q, k, v, a.astype(np.complex64), S.astype(np.complex64))
  assert by_hand.error((turned, memory.real), (want, last)) < 3e-6 and np.all(memory.imag == 0)


def test_a_third_of_a_turn_per_one_counts_modulo_three():
  bits = np.random.default_rng(6).integers(0, 2, (1, 60, 1, 1))
  a = np.exp(2j * np.pi / 3 * bits).astype(np.complex64)
  ones = np.ones((1, 60, 1, 1), np.float32)
  _, memory = loop(ones, 0 * ones, ones, a, np.ones((1, 1, 1, 1), np.complex64))
  want = np.exp(2j * np.pi / 3 * bits.sum())
  assert abs(memory[0, 0, 0, 0] - want) < 1e-5


def test_an_untrained_head_has_the_half_life_it_was_given():
  layer, run = _layer(False)
  x, state = np.zeros((2, 16, 5), np.float32), by_hand.state(layer, 7)
  params = jax.jit(layer.init)(jax.random.key(0), x)
  assert by_hand.error(run(params, x, state)[1]["S_BHKV"], state["S_BHKV"] / 2) < 1e-5


@pytest.mark.parametrize("fields", [dict(heads=0), dict(key_dim=0), dict(value_dim=0), dict(half_life=0.0)])
def test_sizes_that_leave_no_memory_are_refused(fields):
  layer = gateloop.GateLoop(**fields)
  with pytest.raises(ValueError, match=f"heads={layer.heads}, key_dim={layer.key_dim} and value_dim="
                                       f"{layer.value_dim} must .*half_life={layer.half_life}"):
    jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 2, 3)))


def test_slopes_of_the_turning_gate_are_those_of_its_polar_form():
  draw = np.random.default_rng(12)
  logit, angle = (draw.standard_normal((3, 40)).astype(np.float32) * 4 for _ in range(2))
  logit[0, :4] = -200, -90, 90, 200  # nothing kept, and all of it
  real, imaginary = draw.standard_normal((2, 3, 40)).astype(np.float32)
  def slopes(gate):
    loss = lambda *both: jnp.sum(real * (a := gate(*both)).real + imaginary * a.imag)
    return jax.jit(jax.grad(loss, argnums=(0, 1)))(logit, angle)
  polar = lambda logit, angle: jax.nn.sigmoid(logit) * jnp.exp(1j * angle)
  for mine, own in zip(slopes(gateloop.turning_gate), slopes(polar)):
    np.testing.assert_allclose(mine, own, rtol=2e-5, atol=2e-6)
