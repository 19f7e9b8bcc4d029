"""Conversions keep the function: against a float64 model by hand, in float32 models, along training, and where refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from layers import stream_map as streams
from layers.channel.glu import GLU
from layers.channel.mlp import MLP
from layers.convert.absorb_scale import absorb_scale
from layers.convert.fold_affine import fold_affine
from layers.convert.fuse_affine import fuse_affine
from layers.convert.materialise import materialise
from layers.convert.to_crms import to_crms
from layers.convert.to_rms import to_rms
from layers.lm import LM
from layers.mixers.attention import Attention
from layers.norms.batch_norm import BatchNorm
from layers.norms.crms_norm import CRMSNorm
from layers.norms.layer_norm import LayerNorm
from layers.norms.prepbn import PRepBN
from layers.norms.rms_norm import RMSNorm
from layers.norms.unified_norm import UnifiedNorm
from layers.placement import placement
from layers.stack import Stack
from tests.layers import toy

# Dims: B batch, T tokens, D width, H heads, K head width, F hidden, V vocabulary, L layers.
B, T, D, F, V, L, EPS = 2, 5, 6, 8, 7, 3, 1e-3
TOKENS_BT = np.random.default_rng(0).integers(0, V, (B, T)).astype(np.int32)


def _model(norm=functools.partial(LayerNorm, eps=EPS), *, place="pre", width=D, bias=False, channel=MLP, transform="",
           scan=True, positions=T, **lm):
  mixer = functools.partial(Attention, heads=2, head_dim=3, rope_theta=0.0, bias=bias, kernel_transform=transform)
  channel = functools.partial(channel, hidden=F, activation="relu", bias=bias, kernel_transform=transform)
  stack = functools.partial(Stack, (mixer,) * L, channel, norm, placement(place, L), scan=scan,
                            dropout=lm.pop("dropout", 0.0))
  return LM(V, width, stack, max_positions=positions, head_bias=bias, **lm)


def _params(model, seed=1):
  return toy.parameters(model, seed, TOKENS_BT, spread=0.4)


def _close(got, want, bound=1e-5):
  assert np.linalg.norm(got - want) <= bound * np.linalg.norm(want)


def _convert(convert, params, model):
  """Runs a conversion as one program: op by op it would be compiled op by op."""
  return jax.jit(lambda params: convert(params, streams.stream_map(model)))(params)


def _apply(model, params, **extra):
  return jax.jit(lambda v: model.apply(v, TOKENS_BT)[0])({"params": params, **extra})


BARE = functools.partial(LayerNorm, eps=EPS, gain=False, bias=False)
RMS = functools.partial(RMSNorm, eps=EPS, gain=False)
CRMS = functools.partial(CRMSNorm, eps=EPS)


# --- the model by hand, float64

def _norm(kind, x, node):
  if kind == "layer":
    x = x - x.mean(-1, keepdims=True)
  squares = (x**2).sum(-1, keepdims=True)
  if kind == "crms":
    n = x / np.sqrt((squares + x.sum(-1, keepdims=True)**2) / (x.shape[-1] + 1) + EPS)
  else:
    n = x / np.sqrt(squares / x.shape[-1] + EPS)
  return n * node.get("scale", 1.0) + node.get("bias", 0.0)


def _dense(node, x, inputs=1):
  return np.tensordot(x, node["kernel"], inputs) + node.get("bias", 0.0)


def _by_hand(p, kind):
  """Logits of `_model` without scan, the norm of every site being `kind`."""
  x = p["embedding"]["embedding"][TOKENS_BT] + p["positions"]["embedding"][:T]
  for layer in range(L):
    block = p["stack"][f"layers_{layer}_to_{layer}"]["block_0"]
    h, m = _norm(kind, x, block.get("mixer_pre_norm", {})), block["mixer"]
    q, k, v = (_dense(m[name], h) for name in ("query", "key", "value"))
    scores = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1])
    scores = np.exp(np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf))
    y = np.einsum("bhts,bshk->bthk", scores / scores.sum(-1, keepdims=True), v)
    x = x + _dense(m["out"], y, 2)
    h, c = _norm(kind, x, block.get("channel_pre_norm", {})), block["channel"]
    x = x + _dense(c["down"], np.maximum(_dense(c["up"], h), 0))
  return _dense(p["head"], _norm(kind, x, p["stack"].get("final_norm", {})))


def test_the_three_models_are_one_in_float64():
  model = _model(scan=False)
  bare = _model(BARE, scan=False)
  params = jax.tree.map(np.float64, _params(model))
  with jax.enable_x64(True):
    folded = _convert(fold_affine, params, model)
    others = [(folded, "layer"), (_convert(to_rms, folded, bare), "rms"), (_convert(to_crms, folded, bare), "crms")]
  want = _by_hand(params, "layer")
  for found, kind in others:
    _close(_by_hand(jax.tree.map(np.asarray, found), kind), want, 1e-12)


# --- models in float32

@pytest.mark.parametrize("channel", [MLP, GLU])
def test_converted_models_have_the_logits_of_the_original(channel):
  model, bare = _model(channel=channel), _model(BARE, channel=channel, bias=True)
  params = _params(model)
  folded = _convert(fold_affine, params, model)
  want = _apply(model, params)
  _close(_apply(bare, folded), want)
  rms = _convert(to_rms, folded, bare)
  _close(_apply(_model(RMS, channel=channel, bias=True), rms), want)
  crms = _convert(to_crms, folded, bare)
  _close(_apply(_model(CRMS, channel=channel, bias=True, width=D - 1), crms), want)


def test_every_writer_of_the_converted_stream_has_mean_0():
  model = _model(BARE, scan=False)
  rms = _convert(to_rms, _params(model), model)
  for site in streams.stream_map(model).writers:
    for weight in streams.at(rms, site.path).values():
      assert np.max(np.abs(np.mean(weight, axis=-1))) < 1e-6


def test_training_through_the_conversion_is_training_the_original():
  """Adam on raw parameters: five steps of the LayerNorm model and of the RMSNorm model of the converted ones."""
  model, rms = _model(BARE), _model(RMS)
  stream, rule = streams.stream_map(model), optax.adam(1e-2)
  def loss(model, params):
    logits = model.apply({"params": params}, TOKENS_BT)[0]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, np.roll(TOKENS_BT, -1, 1)))
  def train(loss):
    def step(carry, _):
      params, state = carry
      updates, state = rule.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), None
    params = _params(model)
    return jax.jit(lambda c: jax.lax.scan(step, c, None, length=5)[0][0])((params, rule.init(params)))
  plain, converted = train(lambda p: loss(model, p)), train(lambda p: loss(rms, to_rms(p, stream)))
  for want, got in zip(jax.tree.leaves(plain), jax.tree.leaves(converted)):
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("scan", [True, False])
def test_absorbed_scales_leave_the_placement_pre(scan):
  scaled = _model(place="layernorm_scaling", scan=scan)
  params = _params(scaled)
  absorbed = _convert(absorb_scale, params, scaled)
  _close(_apply(_model(scan=scan), absorbed), _apply(scaled, params))


def test_folding_and_scaling_commute():
  scaled, bare = _model(place="layernorm_scaling"), _model(BARE, place="layernorm_scaling", bias=True)
  params = _params(scaled)
  folded = _convert(fold_affine, params, scaled)
  absorbed = _convert(absorb_scale, folded, bare)
  _close(_apply(_model(BARE, bias=True), absorbed), _apply(scaled, params))


@pytest.mark.parametrize("norm", [BatchNorm, UnifiedNorm, PRepBN])
def test_a_fused_model_is_the_evaluated_one(norm):
  model = _model(norm)
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS_BT)
  draw = np.random.default_rng(2)
  stats = jax.tree.map(lambda s: draw.uniform(0.5, 2.0, s.shape).astype(s.dtype), shapes["batch_stats"])
  params = _params(model)
  fused = _convert(fuse_affine, {"params": params, "batch_stats": stats}, model)
  _close(_apply(_model(place="none", bias=True), fused), _apply(model, params, batch_stats=stats))


@pytest.mark.parametrize("transform", ["sigma_reparam", "weight_norm", "zero_mean"])
def test_materialised_kernels_are_those_of_evaluation(transform):
  model = _model(transform=transform)
  params, extra = _params(model), {}
  if transform == "sigma_reparam":
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS_BT)["kernel_state"]
    draw = np.random.default_rng(3)
    extra["kernel_state"] = jax.tree.map(lambda s: draw.standard_normal(s.shape).astype(s.dtype), shapes)
  plain = _convert(materialise, {"params": params, **extra}, model)
  _close(_apply(_model(), plain), _apply(model, params, **extra))


# --- refusals

@pytest.mark.parametrize("convert, model, says", [
    (to_rms, _model(BARE, dropout=0.1), "dropout=0.1"),
    (fold_affine, _model(tied=True), "tied=True"),
    (fold_affine, _model(place="peri"), "out norm"),
    (fold_affine, _model(place="post"), "post norm"),
    (fold_affine, _model(place="none"), "without a norm"),
    (to_rms, _model(), "fold_affine first"),
    (to_crms, _model(), "fold_affine first"),
    (to_rms, _model(RMS), "is not LayerNorm"),
    (to_rms, _model(BARE, transform="zero_mean"), "materialise it first"),
    (absorb_scale, _model(transform="weight_norm"), "materialise it first"),
    (fuse_affine, _model(), "not affine in evaluation"),
    (fuse_affine, _model(BatchNorm, place="layernorm_scaling"), "absorb_scale first")])
def test_what_cannot_be_followed_is_refused(convert, model, says):
  with pytest.raises(ValueError, match=says):
    convert({}, streams.stream_map(model))


def test_a_layer_that_does_not_say_what_it_reads_is_refused():
  model = LM(V, D, functools.partial(Stack, (Attention,), toy.Tanh, LayerNorm, placement("pre", 1)))
  with pytest.raises(ValueError, match="Tanh does not declare"):
    streams.stream_map(model)
