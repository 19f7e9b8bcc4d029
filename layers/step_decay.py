"""Decays as a rate times a step: slow and fast heads from the start, each bent by the token.

    log a = -A softplus(z + b)        A = exp(A_log) > 0

At first A is uniform and softplus(b), the step, log-uniform, so that the half-lives
ln 2 / (A step) spread over some powers of ten.

Reference: Gu and Dao, "Mamba", 2023; Dao and Gu, "Transformers are SSMs", 2024.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def log_rate_init(low: float, high: float):
  """Returns the initializer of A_log: log of a uniform rate in [low, high], low > 0."""
  def init(key, shape, dtype=jnp.float32):
    return jnp.log(jax.random.uniform(key, shape, dtype, low, high))
  return init


def step_bias_init(low: float = 1e-3, high: float = 0.1):
  """Returns the initializer of b: softplus(b) is log-uniform in [low, high], low > 0."""
  def init(key, shape, dtype=jnp.float32):
    log_step = jax.random.uniform(key, shape, dtype, jnp.log(low), jnp.log(high))
    step = jnp.exp(log_step)
    # The inverse of softplus, log(expm1(step)), without its loss of digits.
    return step + jnp.log(-jnp.expm1(-step))
  return init


def log_decay(z, log_rate):
  """Returns log a in nats for z with its bias added; log_rate broadcasts against it."""
  return -jnp.exp(log_rate) * nn.softplus(z)
