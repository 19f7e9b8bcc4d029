"""Operations counted from the program against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import config as configs
from research import count, model_table
from research import program as programs
from tests.research import toy

# Dims: M, K, N of a matrix product.
a_MK, b_KN, c_NN = (np.ones(shape, np.float32) for shape in ((3, 5), (5, 7), (7, 7)))
product = 2 * 3 * 5 * 7


@jax.custom_vjp
def twice(x):
  return x + x


twice.defvjp(lambda x: (x + x, None), lambda _, g: (jnp.sin(g) * jnp.cos(g),))


def _loop(a_MK, b_KN, c_NN):
  return jax.lax.scan(lambda x, _: (x @ c_NN, None), a_MK @ b_KN, length=11)[0]


@pytest.mark.parametrize("function, args, flops", [
    (lambda a, b: a @ b, (a_MK, b_KN), product),
    (lambda a, b: jnp.einsum("mk,kn->m", a, b), (a_MK, b_KN), None),
    (_loop, (a_MK, b_KN, c_NN), product + 11 * 2 * 3 * 7 * 7),
    (lambda x: x + x, (a_MK,), 15),
    (lambda x: jnp.sum(x), (a_MK,), 15),
    (lambda x: x.reshape(5, 3).T, (a_MK,), 0),
    (jax.jit(lambda a, b: a @ b), (a_MK, b_KN), product),
    (jax.checkpoint(lambda a, b: a @ b), (a_MK, b_KN), product),
    (twice, (a_MK,), 15),
    (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x), (c_NN,), 2 * 7**3),
    (lambda x, k: jax.lax.conv(x, k, (1,), "VALID"),
     (np.ones((2, 3, 10), np.float32), np.ones((4, 3, 5), np.float32)), 2 * (2 * 4 * 6) * 3 * 5),
], ids=["matmul", "einsum", "scan", "add", "sum", "moves", "jit", "remat", "custom_vjp", "cond", "conv"])
def test_operations_are_those_of_the_formula(function, args, flops):
  got = count.of_function(function, *args)
  assert got > 0 if flops is None else got == flops


def test_the_backward_pass_of_remat_computes_the_forward_pass_again():
  square = lambda x: jnp.sum(jnp.tanh(x @ c_NN) @ c_NN)
  plain, again = (count.of_function(jax.grad(f), a_MK @ b_KN) for f in (square, jax.checkpoint(square)))
  assert plain < again <= plain + count.of_function(square, a_MK @ b_KN)


def test_a_transformer_costs_twice_its_parameters_and_its_attention():
  config = configs.load("byte_lm:smoke")[2]
  configs.override(config, {
      "task.name": "parity.Parity", "task.tokens": 64, "task.batch_size": 8, "model.pattern": "attention",
      "model.width": 256, "model.attention.head_dim": 64})
  program = programs.make(config)
  table = {name: value for name, value, _ in model_table.rows(program)}
  T, D, L = 64, 256, 2
  want = 2 * table["parameters without embeddings"] + L * 2 * 2 * T * D  # scores and mix
  assert table["forward"] == pytest.approx(want, rel=0.05)
  assert table["forward and backward"] == pytest.approx(3 * want, rel=0.08)
  assert table["parameters"] == sum(x.size for x in jax.tree.leaves(program.abstract.params))


def test_bytes_of_state_are_those_of_its_arrays():
  program = programs.make(toy.config())
  assert count.state_bytes(program.model) == 4 * (2 * 4 * 4 + 1)  # two heads of 4 x 4, tokens seen
  assert count.nbytes({"a": np.ones((3, 4), np.int8), "b": jnp.ones(5, jnp.bfloat16)}) == 22
