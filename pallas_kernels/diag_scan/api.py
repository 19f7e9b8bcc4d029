"""Elementwise linear recurrence h_t = a_t h_{t-1} + x_t, real or complex: the one public call.

The backward is the same scan in the other direction:

    lambda_t = dh_t + a_{t+1} lambda_{t+1},   dx_t = lambda_t,   da_t = lambda_t h_{t-1},   dh_0 = a_1 lambda_1

in jax's convention for complex cotangents, which transposes without conjugating (`jax.grad` of a real
loss is then the conjugate of the steepest ascent, here as everywhere in jax).

Reference: Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences", 2023, for the
layer that made the diagonal form common.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import choice, compat
from pallas_kernels.diag_scan import gpu, interpret, reference, tpu, xla

# Dims: B batch, T tokens, D channels (all trailing axes merged).

BACKENDS = {"xla": xla, "pallas_tpu": tpu, "pallas_gpu": gpu, "interpret": interpret}
# What `auto` tries, best first. The TPU kernel goes by its static schedule (tpu.py), the others by measurements.
AUTO = {"tpu": ("pallas_tpu", "xla"), "gpu": ("xla",), "cpu": ("xla",)}
# What `auto` leaves to the caller.
UNMEASURED = {"gpu": {"pallas_gpu": "never run on a GPU, so never measured against xla; name it to try it"}}


def diag_scan(a, x, *, h0=None, segment_ids=None, reverse=False, backend="auto"):
  """Runs the recurrence along axis 1; differentiable in a, x and h0.

  Args:
    a: factor, the shape of x, or [*channels] for one that never changes.
    x: [B,T,*channels], real or complex; a and x may differ in that.
    h0: [B,*channels] before the first processed segment; None is zero.
    segment_ids: integers [B,T]; a run of equal ids is a sequence of its own, tokens with negative
      ids are skipped and read zero.
    reverse: takes the tokens last to first.
    backend: "auto", "reference", "xla", "pallas_tpu", "pallas_gpu" or "interpret".

  Returns:
    (h in the promoted dtype of a and x, shape of x; value after the last processed token, [B,*channels]
    in at least float32 or complex64).

  Raises:
    ValueError: shapes, dtypes or options that do not fit, or a backend that cannot run here.
  """
  a, x, h0, segment_ids = _arrays(a, x, h0, segment_ids)
  dtype = jnp.promote_types(a.dtype, x.dtype)
  wide = jnp.promote_types(dtype, jnp.float32)
  name = _choose(backend, x.shape, wide, jax.default_backend()).name
  B, T, *channels = x.shape
  D = int(np.prod(channels))
  a = a.astype(wide).reshape(*([D] if a.ndim < x.ndim else [B, T, D]))
  x = x.astype(wide).reshape(B, T, D)
  h0 = jnp.zeros((B, D), wide) if h0 is None else h0.astype(wide).reshape(B, D)
  if segment_ids is not None:
    a, x = _pack(a, x, segment_ids, reverse)
  a, x, h0 = compat.vary_alike((a, x, h0))
  h = reference.run(a, x, h0, reverse) if name == "reference" else run(name, reverse, a, x, h0)
  last = h[:, 0 if reverse else -1].reshape(B, *channels)
  if segment_ids is not None:
    h = jnp.where((segment_ids >= 0)[..., None], h, 0)
  return h.astype(dtype).reshape(B, T, *channels), last


def explain_backend(x, *, backend="auto", platform=None) -> choice.Choice:
  """Says which backend `diag_scan` would take for x (an array or a shape), and why.

  Raises:
    ValueError: the named backend is unknown or cannot run here.
  """
  return _choose(backend, x.shape, x.dtype, jax.default_backend() if platform is None else platform)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(name, reverse, a, x_BTD, h0_BD):
  """h_BTD of canonical arrays, all of one dtype, by the backend `name`; differentiable."""
  return BACKENDS[name].scan(a, x_BTD, h0_BD, reverse)


def _scan_forward(name, reverse, a, x_BTD, h0_BD):
  h_BTD = run(name, reverse, a, x_BTD, h0_BD)
  return h_BTD, (a, h_BTD, h0_BD)


def _scan_backward(name, reverse, residuals, dh_BTD):
  a, h_BTD, h0_BD = residuals
  a, dh_BTD, zero_BD = compat.vary_alike((a, dh_BTD, jnp.zeros_like(h0_BD)))
  lambda_BTD = BACKENDS[name].scan(a, dh_BTD, zero_BD, not reverse, late=True)
  da = lambda_BTD * reference.before(h_BTD, h0_BD, reverse)
  if a.ndim == 1:
    da = jnp.sum(da, axis=(0, 1))
    dh0_BD = a[None, :] * lambda_BTD[:, -1 if reverse else 0]
  else:
    dh0_BD = (a * lambda_BTD)[:, -1 if reverse else 0]
  return da, lambda_BTD, dh0_BD


run.defvjp(_scan_forward, _scan_backward)


def _pack(a, x_BTD, segment_ids, reverse):
  """Sets a to 0 where a segment begins (but the first) and to 1, with x = 0, on padding."""
  if reverse:
    segment_ids = segment_ids[:, ::-1]
  B, T = segment_ids.shape
  token_BT = segment_ids >= 0
  latest_BT = jax.lax.cummax(jnp.where(token_BT, jnp.arange(T)[None, :], -1), axis=1)
  before_BT = jnp.concatenate([jnp.full((B, 1), -1), latest_BT[:, :-1]], axis=1)
  earlier_BT = jnp.take_along_axis(segment_ids, jnp.maximum(before_BT, 0), axis=1)
  begins_BT = token_BT & (before_BT >= 0) & (earlier_BT != segment_ids)
  if reverse:
    token_BT, begins_BT = token_BT[:, ::-1], begins_BT[:, ::-1]
  if a.ndim == 1:
    a = jnp.broadcast_to(a[None, None, :], x_BTD.shape)
  a = jnp.where(begins_BT[..., None], 0, jnp.where(token_BT[..., None], a, 1))
  return a, jnp.where(token_BT[..., None], x_BTD, 0)


def _arrays(a, x, h0, segment_ids):
  for name, value in (("a", a), ("x", x)):
    if not jnp.issubdtype(value.dtype, jnp.inexact):
      raise ValueError(f"{name} is {value.dtype}, must be floating point or complex; cast it.")
  if x.ndim < 3 or 0 in x.shape:
    raise ValueError(f"x has shape {x.shape}, must be [B,T,channels...] with no empty axis; "
                     "add a channel axis, or skip the call for T=0.")
  if a.shape not in (x.shape, x.shape[2:]):
    raise ValueError(f"a has shape {a.shape}, must be the shape of x {x.shape} or of one token {x.shape[2:]}.")
  if h0 is not None and h0.shape != (x.shape[0], *x.shape[2:]):
    raise ValueError(f"h0 has shape {h0.shape}, must be {(x.shape[0], *x.shape[2:])}, one value per channel.")
  if h0 is not None and jnp.issubdtype(h0.dtype, jnp.complexfloating) and not (
      jnp.issubdtype(jnp.promote_types(a.dtype, x.dtype), jnp.complexfloating)):
    raise ValueError(f"h0 is {h0.dtype} but a and x are {a.dtype} and {x.dtype}; one of them must be complex.")
  if segment_ids is not None and (segment_ids.shape != x.shape[:2]
                                  or not jnp.issubdtype(segment_ids.dtype, jnp.integer)):
    raise ValueError(f"segment_ids is {segment_ids.dtype}{list(segment_ids.shape)}, must be an integer "
                     f"array [B,T]={list(x.shape[:2])}; negative ids mark padding.")
  return tuple(None if y is None else jnp.asarray(y) for y in (a, x, h0, segment_ids))


def _choose(name, shape, dtype, platform):
  def why_not(backend):
    return None if backend == "reference" else BACKENDS[backend].why_not(shape, dtype, platform)

  return choice.choose(name, platform, AUTO.get(platform, ("xla",)), why_not, UNMEASURED.get(platform, {}))
