"""What the mixers are made of, in float64 numpy and token by token, written apart from the layers."""

import jax
import numpy as np


def wide(tree):
  return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def sigmoid(z):
  return 1 / (1 + np.exp(-z))


def silu(z):
  return z * sigmoid(z)


def gelu(z):
  return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def softplus(z):
  return np.logaddexp(0, z)


def gelu(z):
  return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def affine(p, x):
  return x @ p["kernel"] + p["bias"]


def gated_output(p, y):
  """Returns what state spaces make of their outputs: gelu, then a map times a gate."""
  y = gelu(y)
  return affine(p["out"], y) * sigmoid(affine(p["gate"], y))


def unit(x):
  return x / np.sqrt(np.sum(x * x, -1, keepdims=True) + 1e-6)


def rms(x, scale, eps):
  return scale * x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)


def heads(y, count):
  return y.reshape(*y.shape[:2], count, -1)


def convolve(y, filters, past):
  """Returns (the causal convolution, its inputs for the next tokens)."""
  line, W = np.concatenate([past, y], 1), len(filters)
  out = np.zeros_like(y)
  for t in range(y.shape[1]):
    for w in range(W):
      out[:, t] += filters[w] * line[:, W - 1 + t - w]
  return out, line[:, y.shape[1]:]


def project(p, name, x, state, count, activation=silu):
  """Returns (heads of the projection, {name: past} or {} where there is no convolution)."""
  y, final = x @ p[name]["kernel"], {}
  if f"{name}_conv" in p:
    y, final[name] = convolve(y, p[f"{name}_conv"]["filter"], state[name])
  return heads(activation(y), count), final


def recurrence(q, k, v, S, log_a=None, beta=None, scale=None):
  """Returns (y, final S); log_a is [B,T,H] or [B,T,H,K], beta None adds instead of correcting."""
  y = np.zeros((*q.shape[:3], v.shape[-1]))
  for t in range(q.shape[1]):
    if log_a is not None:
      a = np.exp(log_a[:, t])
      S = S * (a[..., None, None] if a.ndim == 2 else a[..., None])
    write = v[:, t]
    if beta is not None:
      write = beta[:, t, :, None] * (write - np.einsum("bhkv,bhk->bhv", S, k[:, t]))
    S = S + k[:, t, :, :, None] * write[:, :, None, :]
    y[:, t] = np.einsum("bhkv,bhk->bhv", S, q[:, t])
  return y * (q.shape[-1] ** -0.5 if scale is None else scale), S


def tokens(seed, B=2, T=9, D=5):
  return np.random.default_rng(seed).standard_normal((B, T, D), np.float32)


def state(layer, seed, B=2):
  """Returns a state of `layer` drawn from the normal distribution."""
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda s: draw.standard_normal(s.shape, np.float32), layer.init_state(B))


def error(got, want):
  """Returns the largest relative error over the leaves of two trees of one form."""
  assert jax.tree.structure(got) == jax.tree.structure(want)
  return max(np.linalg.norm(g - w) / np.linalg.norm(w)
             for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))


def bit_linear(p, x, ternary=True):
  """Returns the map of layers/bit_linear.py with its parameters p."""
  x, w = rms(x, p["norm"]["scale"], 1e-8), p["kernel"]
  if ternary:
    step = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5) / 127
    scale = max(np.abs(w).mean(), 1e-5)
    x, w = np.clip(np.round(x / step), -128, 127) * step, np.clip(np.round(w / scale), -1, 1) * scale
  return x @ w


def scan(a, x, h):
  """Returns (h_t = a_t h_{t-1} + x_t at every token, the last); a may be one for all tokens."""
  y = np.zeros(np.broadcast_shapes(a.shape, x.shape), np.result_type(a, x, h))
  for t in range(x.shape[1]):
    h = (a[:, t] if a.ndim == x.ndim else a) * h + x[:, t]
    y[:, t] = h
  return y, h
