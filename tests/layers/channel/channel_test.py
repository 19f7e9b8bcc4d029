"""The channel mixers and their activations against numpy formulas."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.activations import activation, ACTIVATIONS
from layers.channel.glu import GLU
from layers.channel.mlp import MLP
from tests.layers import toy

D = 6

_sigmoid = lambda x: 1 / (1 + np.exp(-x))
FORMULAS = {
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "identity": lambda x: x,
    "relu": lambda x: np.where(x > 0, x, 0),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "squared_relu": lambda x: np.where(x > 0, x, 0) ** 2,
    "tanh": lambda x: (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1),
}


@jax.jit
def _every_activation(x):
  return {name: activation(name)(x) for name in ACTIVATIONS}


def test_every_activation_is_its_formula():
  x = np.concatenate([np.linspace(-9, 9, 181), [0.0]])
  got = _every_activation(x.astype(np.float32))
  assert set(got) == set(FORMULAS)
  for name, want in FORMULAS.items():
    np.testing.assert_allclose(got[name], want(x), rtol=3e-6, atol=3e-6, err_msg=name)


def _case(layer, seed):
  """Returns (output, tokens and parameters in float64) for drawn tokens and parameters."""
  x = np.random.default_rng(seed).standard_normal((2, 3, D), np.float32)
  params = toy.parameters(layer, seed + 1, x)
  wide = lambda tree: jax.tree.map(lambda p: np.asarray(p, np.float64), tree)
  return jax.jit(layer.apply)({"params": params}, x), wide(x), wide(params)


def _dense(p, x):
  return x @ p["kernel"] + p.get("bias", 0.0)


def _rel(got, want):
  return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("name, bias", [("gelu", False), ("squared_relu", True)])
def test_mlp_is_two_matrices_around_its_activation(name, bias):
  got, x, p = _case(MLP(activation=name, bias=bias), 0)
  assert p["up"]["kernel"].shape == (D, 4 * D) and ("bias" in p["down"]) == bias
  assert _rel(got, _dense(p["down"], FORMULAS[name](_dense(p["up"], x)))) < 3e-6


@pytest.mark.parametrize("name, bias", [("silu", False), ("gelu_exact", True)])
def test_glu_gates_one_projection_by_another(name, bias):
  got, x, p = _case(GLU(hidden=10, activation=name, bias=bias), 2)
  assert p["gate"]["kernel"].shape == (D, 10) and ("bias" in p["down"]) == bias
  want = _dense(p["down"], FORMULAS[name](_dense(p["gate"], x)) * _dense(p["up"], x))
  assert _rel(got, want) < 3e-6


def test_an_identity_mlp_is_linear_and_an_identity_glu_is_quadratic():
  x = np.random.default_rng(3).standard_normal((1, 2, D), np.float32)
  for layer, power in ((MLP(activation="identity"), 1), (GLU(activation="identity"), 2)):
    run = jax.jit(functools.partial(layer.apply, {"params": toy.parameters(layer, 4, x)}))
    assert _rel(run(3 * x), 3**power * np.asarray(run(x))) < 1e-6


def _hidden(layer, width, name):
  shapes = jax.eval_shape(layer.init, jax.random.key(0), np.zeros((1, 1, width), np.float32))
  return shapes["params"][name]["kernel"].shape[1]


@pytest.mark.parametrize("width, expansion, hidden", [
    (96, 8 / 3, 256),   # exact
    (64, 8 / 3, 168),   # 170.7 falls
    (128, 8 / 3, 344),  # 341.3 rises
    (2, 8 / 3, 8),      # 5.3: never below one multiple
    (1, 0.1, 8),
    (16, 4.0, 64),
])
def test_glu_rounds_its_hidden_width_to_the_nearest_multiple_of_8(width, expansion, hidden):
  assert _hidden(GLU(expansion=expansion), width, "gate") == hidden


def test_glu_has_as_many_parameters_as_an_mlp_of_4():
  glu, mlp = (3 * _hidden(GLU(), 768, "up"), 2 * _hidden(MLP(), 768, "up"))
  assert glu == mlp


def test_a_given_hidden_width_is_taken_as_it_is():
  assert _hidden(GLU(hidden=13, expansion=2.0), 8, "up") == 13
  assert _hidden(MLP(hidden=13, expansion=2.0), 8, "up") == 13


def test_an_mlp_without_hidden_features_is_refused():
  with pytest.raises(ValueError, match=r"expansion=0.01.*width 8.*hidden"):
    _hidden(MLP(expansion=0.01), 8, "up")


@pytest.mark.parametrize("layer", [MLP, GLU])
def test_an_unknown_activation_is_refused_with_the_known_ones(layer):
  with pytest.raises(ValueError, match=r"activation='swish' is unknown; choose from gelu, "):
    jax.eval_shape(layer(activation="swish").init, jax.random.key(0), jnp.zeros((1, 1, D)))
