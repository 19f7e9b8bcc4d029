"""Dense is flax's map without a transform; with one it keeps that transform's law."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers import kernel_transforms
from layers.channel.glu import GLU
from layers.channel.mlp import MLP
from layers.dense import Dense, product
from layers.mixers.attention import Attention

STATE = kernel_transforms.COLLECTION


def _draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _made(module, x):
  return jax.jit(lambda x: module.init_with_output(jax.random.key(3), x)[::-1])(x)


@pytest.mark.parametrize("fields, plain, shape", [
    (dict(features=5), nn.Dense(5, name="m"), (2, 3, 4)),
    (dict(features=5, use_bias=False, dtype=jnp.bfloat16),
     nn.Dense(5, use_bias=False, dtype=jnp.bfloat16, name="m"), (2, 4)),
    (dict(features=(2, 5)), nn.DenseGeneral((2, 5), name="m"), (2, 3, 4)),
    (dict(features=5, inputs=2, use_bias=False),
     nn.DenseGeneral(5, axis=(-2, -1), use_bias=False, name="m"), (2, 3, 4)),
])
def test_without_a_transform_it_is_the_map_of_flax_bit_for_bit(fields, plain, shape):
  x = _draw(0, *shape)
  jax.tree.map(np.testing.assert_array_equal, _made(Dense(**fields, name="m"), x), _made(plain, x))


@pytest.mark.parametrize("fields, plain, shape, tolerance", [
    (dict(features=5), nn.Dense(5), (2, 3, 4), 1e-6), (dict(features=5), nn.Dense(5), (4,), 1e-6),
    (dict(features=5, dtype=jnp.bfloat16), nn.Dense(5, dtype=jnp.bfloat16), (2, 3, 4), 1e-2),
    (dict(features=(2, 5), use_bias=False), nn.DenseGeneral((2, 5), use_bias=False), (2, 3, 4), 1e-6),
    (dict(features=5, inputs=2), nn.DenseGeneral(5, axis=(-2, -1)), (2, 3, 4), 1e-6)])
def test_gradients_of_both_orders_are_those_of_flax(fields, plain, shape, tolerance):
  x, layer = _draw(1, *shape), Dense(**fields)
  params = jax.jit(layer.init)(jax.random.key(1), x)["params"]
  def slopes(module):
    loss = lambda p, x: jnp.sum(jnp.sin(module.apply({"params": p}, x).astype(jnp.float32)))
    first = jax.grad(loss, argnums=(0, 1))
    second = jax.grad(lambda p, x: sum(jnp.sum(jnp.cos(g)) for g in jax.tree.leaves(first(p, x))), argnums=(0, 1))
    return jax.jit(lambda p, x: (first(p, x), second(p, x)))(params, x)
  near = lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=tolerance, atol=10 * tolerance)
  jax.tree.map(near, slopes(layer), slopes(plain))


def test_a_vmapped_map_is_each_by_itself():
  x, W = _draw(2, 3, 6, 4), _draw(3, 3, 4, 5)
  slope = jax.grad(lambda x, W: jnp.sum(jnp.sin(product(x, W))), argnums=(0, 1))
  together, alone = jax.jit(jax.vmap(slope))(x, W), jax.jit(slope)
  for n in range(3):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[n], b, rtol=1e-5, atol=1e-6), together, alone(x[n], W[n]))


def test_sums_may_be_wider_than_the_product():
  x, layer = _draw(4, 2, 4), Dense(5, use_bias=False, dtype=jnp.bfloat16, out_dtype=jnp.float32)
  variables = jax.jit(layer.init)(jax.random.key(1), x)
  y, pull = jax.vjp(jax.jit(lambda x: layer.apply(variables, x)), x)
  slope, = pull(jnp.ones_like(y))
  narrow = lambda a: np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64)
  assert y.dtype == jnp.float32 and slope.dtype == jnp.float32
  np.testing.assert_allclose(y, narrow(x) @ narrow(variables["params"]["kernel"]), rtol=1e-6)
  np.testing.assert_allclose(slope, np.tile(narrow(variables["params"]["kernel"]).sum(1), (2, 1)), rtol=1e-2)


def _sigma(s=1.7, seed=0, **fields):
  """Returns (layer, variables with that s and a u that points anywhere, x)."""
  layer, x = Dense(5, kernel_transform="sigma_reparam", **fields), _draw(seed, 3, 4)
  variables = jax.jit(layer.init)(jax.random.key(1), x)
  u = _draw(seed + 1, 5)
  variables["params"] = dict(variables["params"], sigma_scale=jnp.float32(s))
  return layer, dict(variables, **{STATE: {"u": u / np.linalg.norm(u), "sigma": jnp.zeros(())}}), x


train = jax.jit(lambda variables, x: Dense(5, kernel_transform="sigma_reparam").apply(variables, x, mutable=[STATE]))


def test_one_pass_is_one_power_iteration_and_evaluation_stores_nothing():
  layer, variables, x = _sigma()
  W, u = (np.asarray(v, np.float64) for v in (variables["params"]["kernel"], variables[STATE]["u"]))
  v = W @ u / np.linalg.norm(W @ u)
  u = W.T @ v / np.linalg.norm(W.T @ v)
  want = x @ W * 1.7 / (v @ W @ u)
  y, new = train(variables, x)
  np.testing.assert_allclose(y, want, rtol=2e-5, atol=1e-6)
  np.testing.assert_allclose(new[STATE]["u"], u, rtol=2e-5, atol=1e-6)
  np.testing.assert_allclose(new[STATE]["sigma"], v @ W @ u, rtol=2e-5)
  np.testing.assert_array_equal(jax.jit(layer.apply)(variables, x), y)


def test_the_spectral_norm_becomes_s():
  _, variables, _ = _sigma(s=-1.7)
  for _ in range(50):
    y, new = train(variables, np.eye(4, dtype=np.float32))
    variables |= new
  np.testing.assert_allclose(np.linalg.norm(y, 2), 1.7, rtol=1e-4)


@pytest.mark.parametrize("name, axis", [("sigma_reparam", None), ("weight_norm", 0)])
def test_the_gradient_is_orthogonal_to_the_kernel_whose_scale_does_not_matter(name, axis):
  layer, x, G = Dense(5, kernel_transform=name), _draw(4, 3, 4), _draw(5, 3, 5)
  variables = jax.jit(layer.init)(jax.random.key(1), x)
  loss = lambda p: jnp.sum(G * jnp.sin(layer.apply({**variables, "params": p}, x)))
  g = jax.jit(jax.grad(loss))(variables["params"])["kernel"]
  W = variables["params"]["kernel"]
  assert np.max(np.abs(np.sum(g * W, axis=axis))) < 1e-5 * np.linalg.norm(g) * np.linalg.norm(W)
  bigger = {**variables["params"], "kernel": 8 * W}
  np.testing.assert_allclose(jax.jit(loss)(bigger), jax.jit(loss)(variables["params"]), rtol=1e-5)


@pytest.mark.parametrize("name", ["sigma_reparam:spectral", "weight_norm"])
def test_a_transform_that_begins_as_the_plain_map_does(name):
  x = _draw(6, 3, 4)
  variables, y = _made(Dense(5, kernel_transform=name, name="m"), x)
  plain = jax.jit(nn.Dense(5).apply)({"params": {k: variables["params"][k] for k in ("kernel", "bias")}}, x)
  np.testing.assert_allclose(y, plain, rtol=1e-5, atol=1e-6)


def test_columns_have_the_lengths_that_weight_norm_learns():
  g = np.abs(_draw(7, 5)) + 0.1
  W = jax.jit(kernel_transforms.weight_norm)(_draw(8, 4, 5), g)
  np.testing.assert_allclose(np.linalg.norm(W, axis=0), g, rtol=1e-5)


def test_outputs_of_a_zero_mean_map_sum_to_zero_and_centring_twice_is_once():
  x = 10 * _draw(9, 3, 4)
  layer = Dense(5, kernel_transform="zero_mean", bias_init=nn.initializers.normal(1.0))
  variables, y = _made(layer, x)
  assert np.max(np.abs(np.sum(y, -1))) < 1e-4 and np.max(np.abs(y)) > 1
  once = kernel_transforms.zero_mean(variables["params"]["kernel"], variables["params"]["bias"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kernel_transforms.zero_mean(*once), once)


@pytest.mark.parametrize("name", kernel_transforms.TABLE)
def test_a_kernel_of_zeros_is_finite_in_value_and_gradient(name):
  layer, x = Dense(5, kernel_transform=name, kernel_init=nn.initializers.zeros), _draw(10, 3, 4)
  variables = jax.jit(layer.init)(jax.random.key(1), x)
  out = jax.jit(jax.value_and_grad(lambda v: jnp.sum(jnp.sin(layer.apply(v, x)))))(variables)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))


@pytest.mark.parametrize("layer, maps", [
    (Attention(heads=2, head_dim=2, groups=1, kernel_transform="sigma_reparam"), {"query", "key", "value", "out"}),
    (GLU(hidden=4, kernel_transform="sigma_reparam"), {"gate", "up", "down"}),
    (MLP(hidden=4, kernel_transform="sigma_reparam"), {"up", "down"})], ids=lambda v: type(v).__name__)
def test_every_map_of_a_layer_takes_the_transform(layer, maps):
  made = jax.eval_shape(layer.init, jax.random.key(0), np.zeros((1, 3, 4), np.float32))
  assert set(made[STATE]) == maps == {k for k, v in made["params"].items() if "sigma_scale" in v}
  assert all(set(v) == {"u", "sigma"} and v["sigma"].shape == () for v in made[STATE].values())


def test_an_unknown_transform_is_refused():
  with pytest.raises(ValueError, match="kernel_transform='sigma' is unknown; choose from sigma_reparam"):
    Dense(5, kernel_transform="sigma").init(jax.random.key(0), np.ones((1, 4), np.float32))


def _least_entropy(S, T: int):
  """The least entropy of a softmax over T logits of Euclidean norm S (Zhai et al., 2023, theorem 3.1)."""
  q = np.exp(-S * np.sqrt(T / (T - 1)))
  return np.log1p((T - 1) * q) + S * np.sqrt(T * (T - 1)) * q / (1 + (T - 1) * q)


def test_the_least_entropy_is_attained_by_one_large_logit_and_equal_others():
  S, T = np.array([0.1, 1.0, 4.0]), 6
  z = S[:, None] * np.array([T - 1.0, *[-1.0] * (T - 1)])[None] / np.sqrt(T * (T - 1))
  p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(_least_entropy(S, T), -np.sum(p * np.log(p), axis=1), rtol=1e-12)


def test_two_learned_numbers_bound_the_entropy_of_attention_from_below():
  """Whatever the kernels: without the transform ten times larger ones break the bound."""
  T, D, K = 7, 4, 3
  fields = dict(heads=1, head_dim=K, rope_theta=0.0, direction="bidirectional", max_tokens=T)
  bound, plain = Attention(**fields, kernel_transform="sigma_reparam"), Attention(**fields)
  x = _draw(11, 1, T, D)
  least = _least_entropy(1.3 * 0.9 * np.linalg.norm(x[0], axis=1) * np.linalg.norm(x[0], 2) / K**0.5, T)
  def entropy(layer, variables):
    _, shown = jax.jit(lambda v: layer.apply(v, x, mutable=["depth"]))(variables)
    return np.asarray(shown["depth"]["attention_entropy_BT"][0][0], np.float64)
  variables = jax.jit(bound.init)(jax.random.key(5), x)
  gains = dict(query=1.3, key=0.9, value=1.0, out=1.0)
  large = {k: dict(v, kernel=10 * v["kernel"]) for k, v in variables["params"].items()}
  params = {k: dict(v, sigma_scale=jnp.float32(gains[k])) for k, v in large.items()}
  step = jax.jit(lambda state: bound.apply({"params": params, STATE: state}, x, mutable=[STATE])[1][STATE])
  state = variables[STATE]
  for _ in range(40):
    state = step(state)
  assert np.all(entropy(bound, {"params": params, STATE: state}) >= least - 1e-6)
  free = {k: {"kernel": v["kernel"]} for k, v in large.items()}
  assert np.any(entropy(plain, {"params": free}) < least - 0.1)
