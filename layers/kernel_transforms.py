"""What a linear map may do to its kernel W [I inputs, O outputs] before it is used.

    sigma_reparam   W s / sigma(W)              sigma the spectral norm, s one learned number
    weight_norm     g_o W_io / |W_o|            g one learned length per output
    zero_mean       W - mean_O(W), c - mean_O(c)    every y then sums to 0

sigma_reparam estimates sigma = v^T W u by one power iteration per forward pass,

    v = W u / |W u|,   u <- W^T v / |W^T v|          no gradient through u and v

from the u that the last training step stored (collection "kernel_state"; evaluation
stores nothing). It begins with s = 1; sigma_reparam:spectral with s = sigma(W), as
the plain map. So does weight_norm. Scaling W changes nothing in either: weight decay
on it is pointless, and what config.init does to scale it is without effect.

References: Zhai et al., "Stabilizing Transformer Training by Preventing Attention
Entropy Collapse", 2023 (s = 1 in the text and the published Flax code, sigma(W) in its
vision code); Salimans and Kingma, "Weight Normalization", 2016; Jiang et al.,
"Pre-RMSNorm and Pre-CRMSNorm Transformers", 2023 (zero mean, the training form).
"""

import functools

import jax
import jax.numpy as jnp

COLLECTION = "kernel_state"


def _unit(x):
  """Divides by the length; a zero vector stays zero."""
  length = jnp.sqrt(jnp.sum(jnp.square(x)))
  return x / jnp.where(length > 0, length, 1.0)


def power_iteration(W_IO, u_O):
  """Returns (sigma, the next u_O); the gradient reaches W through sigma alone."""
  fixed_IO, u_O = jax.lax.stop_gradient((W_IO, u_O))
  v_I = _unit(fixed_IO @ u_O)
  u_O = _unit(v_I @ fixed_IO)
  return v_I @ W_IO @ u_O, u_O


def sigma_reparam(W_IO, s, sigma):
  """Returns the kernel of spectral norm |s|; a zero kernel stays zero."""
  return W_IO * (s / jnp.where(sigma > 0, sigma, 1.0))


def weight_norm(W_IO, g_O):
  """Returns the kernel whose columns have the lengths g; a zero column stays zero."""
  squares_1O = jnp.sum(jnp.square(W_IO), axis=0, keepdims=True)
  return W_IO * g_O[None] * jax.lax.rsqrt(jnp.where(squares_1O > 0, squares_1O, 1.0))


def zero_mean(W_IO, bias_O=None):
  """Returns the kernel and bias of outputs that sum to 0."""
  bias_O = None if bias_O is None else bias_O - jnp.mean(bias_O)
  return W_IO - jnp.mean(W_IO, axis=1, keepdims=True), bias_O


def _sigma_reparam(module, W_IO, bias_O, *, spectral):
  top = lambda: jnp.linalg.svd(jax.lax.stop_gradient(W_IO), full_matrices=False)
  u = module.variable(COLLECTION, "u", lambda: top()[2][0])
  tracked = module.variable(COLLECTION, "sigma", lambda: top()[1][0])
  s = module.param("sigma_scale", lambda key: top()[1][0] if spectral else jnp.ones(()))
  sigma, next_O = power_iteration(W_IO, u.value)
  if module.is_mutable_collection(COLLECTION) and not module.is_initializing():
    u.value, tracked.value = next_O, jax.lax.stop_gradient(sigma)
  return sigma_reparam(W_IO, s, sigma), bias_O


def _weight_norm(module, W_IO, bias_O):
  g_O = module.param("length", lambda key: jnp.sqrt(jnp.sum(jnp.square(W_IO), axis=0)))
  return weight_norm(W_IO, g_O), bias_O


def _zero_mean(module, W_IO, bias_O):
  del module  # it has no parameters
  return zero_mean(W_IO, bias_O)


# Each is (the module whose compact method runs, W_IO, bias_O or None) -> (W_IO, bias_O or None).
TABLE = {
    "sigma_reparam": functools.partial(_sigma_reparam, spectral=False),
    "sigma_reparam:spectral": functools.partial(_sigma_reparam, spectral=True),
    "weight_norm": _weight_norm,
    "zero_mean": _zero_mean,
}


def find(name: str):
  """Returns the transform of that name, None for "".

  Raises:
    ValueError: there is none.
  """
  if name and name not in TABLE:
    raise ValueError(f"kernel_transform={name!r} is unknown; choose from {', '.join(TABLE)}, or leave it empty.")
  return TABLE[name] if name else None
