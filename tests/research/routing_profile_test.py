"""Profiles of routing against counts by hand, and layers against what they showed: whole, scanned, shared, padded."""

import functools
import string
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from layers import probe
from layers.channel.moe import MoE
from layers.depth import sharing
from layers.depth.mixture_of_depths import MixtureOfDepths
from layers.depth.mixture_of_recursions import MixtureOfRecursions
from layers.depth.p_mod import PMoD
from layers.depth.token_choice_recursion import TokenChoiceRecursion
from layers.lm import LM
from layers.mixers.attention import Attention
from layers.mixers.mixture_of_heads import MixtureOfHeads
from layers.moe.gshard import GShard
from layers.placement import placement
from layers.stack import Stack
from research import diagnostics, losses, metrics, routing_profile, runs
from research import program as programs
from research.train import train
from tests.layers import toy as parts
from tests.research import toy

# Dims: B batch, T tokens, D width, E experts, K experts per token, C classes of bytes.
B, T, D, E, K = 2, 6, 8, 3, 2
HEADS = functools.partial(MixtureOfHeads, functools.partial(GShard, top_k=2), experts=4, groups=1, head_dim=2)
EXPERTS = functools.partial(MoE, functools.partial(GShard, top_k=K), experts=E, hidden=8)
RECURSIVE = functools.partial(MixtureOfRecursions, recursions=3)
INPUTS = np.frombuffer(b"a1 ,b\xff" + b"xy(z)\n", np.uint8).reshape(B, T).astype(np.int32)
# The last two tokens of the first row are padding.
IDS = np.asarray([[0, 0, 1, 1, -1, -1], [0] * 6], np.int32)
BATCH = {"inputs": INPUTS, "segment_ids": np.zeros((B, T), np.int32)}


@functools.cache
def _model(mixers=(HEADS,) * 2, channel=EXPERTS, policy=None, scan=True, share=""):
  stack = functools.partial(Stack, mixers, channel, parts.Soft, placement("pre", len(mixers)), scan=scan,
                            share=share, policy=policy)
  return LM(256, D, stack)


@functools.cache
def _looked_at(model):
  """Returns (jitted params, batch -> profile, what was shown), as of a text."""
  def look(params, batch):
    _, shown = model.apply({"params": params}, batch["inputs"], None, batch["segment_ids"],
                           mutable=[probe.DEPTH, "metrics"])
    stack = shown[probe.DEPTH]["stack"]
    return routing_profile.of_shown(stack, model.stack(parent=None).runs(), batch, True), shown
  return jax.jit(look)


@functools.cache
def _parameters(model, seed=0):
  return parts.parameters(model, seed, INPUTS[:1])


def _line(model, params, batch=BATCH):
  return routing_profile.record(_looked_at(model)(params, batch)[0], 7)


def _close(got, want, rtol=1e-5):
  assert {*got} == {*want} and got["layers"] == want["layers"]
  for key in {*got} - {"layers"}:
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=rtol, atol=1e-6, err_msg=key), got[key], want[key])


def test_loads_and_shares_of_classes_are_those_counted_by_hand():
  gates_NE = np.asarray([[0.5, 0.5, 0], [0.9, 0, 0.1], [1, 0, 0], [0, 0, 0], [0, 0, 1]], np.float32)
  real_N = np.asarray([True, True, True, True, False])
  got = jax.jit(routing_profile.of_choices)(gates_NE, real_N)
  np.testing.assert_allclose(got["load"], [3 / 5, 1 / 5, 1 / 5], rtol=1e-6)  # five choices of real tokens
  np.testing.assert_allclose(got["max_violation"], 3 * 3 / 5 - 1, rtol=1e-6)
  of_second = -0.9 * np.log(0.9) - 0.1 * np.log(0.1)
  np.testing.assert_allclose(got["entropy"], (np.log(2) + of_second + 0) / 3, rtol=1e-6)
  share_CE = routing_profile.by_class(gates_NE, np.asarray([0, 0, 1, 3, -1]), 4)
  np.testing.assert_allclose(share_CE, [[1 / 2, 1 / 4, 1 / 4], [1, 0, 0], [np.nan] * 3, [np.nan] * 3], rtol=1e-6)


def test_gates_of_any_sign_and_size_weigh_by_their_share():
  draw = np.random.default_rng(0)
  gates_NE, real_N = draw.standard_normal((5, E)).astype(np.float32), np.ones(5, bool)
  entropy = jax.jit(routing_profile.of_choices)
  want = entropy(gates_NE, real_N)["entropy"]
  flipped = gates_NE * np.asarray([1, -1, 1], np.float32) * draw.uniform(1, 9, (5, 1)).astype(np.float32)
  np.testing.assert_allclose(entropy(flipped, real_N)["entropy"], want, rtol=1e-5)


def test_every_byte_is_in_the_class_that_python_puts_it_in():
  table = routing_profile.class_of_byte()
  for byte in range(256):
    sign = chr(byte)
    want = ("letters" if byte < 128 and sign.isalpha() else "digits" if byte < 128 and sign.isdigit() else
            "spaces" if sign in string.whitespace else "punctuation" if sign in string.punctuation else "other")
    assert routing_profile.CLASSES[table[byte]] == want, byte


def test_routers_in_mixer_and_channel_are_both_read_layer_by_layer():
  """Against what the layers say of themselves in "metrics", and against a count over the gates that they showed."""
  model = _model()
  found, shown = _looked_at(model)(_parameters(model), BATCH)
  line = routing_profile.record(found, 7)
  assert line["layers"] == ["0 channel", "0 mixer", "1 channel", "1 mixer"] and line["step"] == 7
  assert [len(load) for load in line["load"]] == [3, 4, 3, 4] and "applied" not in line
  np.testing.assert_array_equal(line["dropped"], [0, np.nan, 0, np.nan])
  classes_N = routing_profile.class_of_byte()[INPUTS.reshape(-1)]
  for place, name in enumerate(line["layers"]):
    layer, module = name.split()
    block = {kind: shown[kind]["stack"]["scan_0_to_1"]["block_0"][module] for kind in (probe.DEPTH, "metrics")}
    np.testing.assert_allclose(line["load"][place].sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(
        line["max_violation"][place], block["metrics"]["max_violation"][0][int(layer)], rtol=1e-5)
    gates_NE = block[probe.DEPTH]["gates_NE"][0][int(layer)]
    for i in range(len(routing_profile.CLASSES)):
      count_E = np.sum(gates_NE[classes_N == i] != 0, axis=0)
      np.testing.assert_allclose(line["classes"][place][i], count_E / count_E.sum(), rtol=1e-6)


def test_scanned_is_unrolled():
  model = _model()
  params = _parameters(model)
  run = params["stack"]["scan_0_to_1"]
  layers = {f"layers_{i}_to_{i}": jax.tree.map(lambda p, i=i: p[i], run) for i in range(2)}
  stack = {name: node for name, node in params["stack"].items() if name != "scan_0_to_1"} | layers
  _close(_line(_model(scan=False), {**params, "stack": stack}), _line(model, params))


def test_shared_layers_are_layers_of_equal_weights():
  shared = _model(share="cycle:1")
  params = _parameters(shared)
  stack = {name: sharing.untie(node, 2) if name == "scan_0_to_1" else node for name, node in params["stack"].items()}
  _close(_line(shared, params), _line(_model(), {**params, "stack": stack}))


def test_padding_leaves_no_trace():
  """Other bytes in its place change no number; without it the first row counts four tokens."""
  model = _model((parts.Mean,) * 3, policy=RECURSIVE)
  params = _parameters(model)
  one, other = (_line(model, params, {"inputs": np.where(IDS < 0, byte, INPUTS), "segment_ids": IDS})
                for byte in (0, 255))
  _close(one, other)
  assert np.abs(_line(model, params)["load"][0] - one["load"][0]).max() > 1e-3
  assert len(one["applied"]) == 4 and bytes(one["bytes"].tolist()) == b"a1 ,"


def test_vmapped_seeds_are_each_alone():
  model = _model()
  of_seeds = [_parameters(model, seed) for seed in (0, 1)]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *of_seeds)
  look = _looked_at(model)
  together = jax.jit(jax.vmap(lambda params: look(params, BATCH)[0]))(stacked)
  values = {name: np.zeros((2, 2)) for name in diagnostics.NAMES} | {"routing": together}
  program = SimpleNamespace(task=SimpleNamespace(on_device=True), seeds=2)
  records = diagnostics.records(program, lambda state, batch: values, None, 7)
  for record, params in zip(records, of_seeds):
    _close(record["routing"], _line(model, params))
  assert np.abs(records[0]["routing"]["load"][0] - records[1]["routing"]["load"][0]).max() > 1e-3


def test_a_byte_counts_the_layers_that_its_router_lets_it_into():
  """Layer 1 of 2 takes the three largest products of what enters it with the router's kernel."""
  model = _model((parts.Mean,) * 2, parts.Tanh, functools.partial(MixtureOfDepths, ratio=0.5))
  params = _parameters(model)
  found, shown = _looked_at(model)(params, BATCH)
  x_TD = shown[probe.DEPTH]["stack"]["layers_0_to_0"]["block_0"]["stream_BTD"][0][0]
  r_T = (x_TD @ params["stack"]["layers_1_to_1"]["block_0"]["router"]["kernel"])[:, 0]
  line = routing_profile.record(found, 7)
  np.testing.assert_array_equal(line["applied"], 1 + (np.argsort(np.argsort(-r_T)) < 3))
  assert {*line} == {"step", "applied", "bytes"}
  np.testing.assert_array_equal(line["bytes"], INPUTS[0])


def test_each_recursion_counts_and_its_choices_are_of_the_bytes_it_kept():
  model = _model((parts.Mean,) * 3, policy=RECURSIVE)
  found, shown = _looked_at(model)(_parameters(model), BATCH)
  line = routing_profile.record(found, 7)
  # Of six tokens the three recursions keep 6, 4 and 2; the layers at both ends run once.
  assert sorted(line["applied"]) == [3, 3, 4, 4, 5, 5]
  layer = shown[probe.DEPTH]["stack"]["layers_1_to_1"]["block_0"]
  count_CE = np.zeros((len(routing_profile.CLASSES), E))
  classes_BT = routing_profile.class_of_byte()[INPUTS]
  for index_BK, gates_NE in zip(layer["kept_BK"], layer["block"]["channel"]["gates_NE"]):
    classes_N = np.take_along_axis(classes_BT, np.asarray(index_BK), axis=1).reshape(-1)
    for n, row in enumerate(classes_N):
      count_CE[row] += np.asarray(gates_NE)[n] != 0
  np.testing.assert_allclose(line["load"][1], count_CE.sum(0) / count_CE.sum(), rtol=1e-6)
  np.testing.assert_allclose(line["classes"][1], count_CE / count_CE.sum(1, keepdims=True), rtol=1e-6)


def test_tokens_that_choose_count_as_often_as_they_chose_and_the_others_route_nothing():
  model = _model((parts.Mean,) * 3, policy=functools.partial(TokenChoiceRecursion, recursions=3))
  params = _parameters(model)
  found, shown = _looked_at(model)(params, BATCH)
  line, stack = routing_profile.record(found, 7), shown[probe.DEPTH]["stack"]
  x_BTD = stack["layers_0_to_0"]["block_0"]["stream_BTD"][0]
  depth_BT = np.argmax(x_BTD @ params["stack"]["layers_1_to_1"]["block_0"]["router"]["kernel"], axis=-1)
  np.testing.assert_array_equal(line["applied"], 3 + depth_BT[0])
  count_E = np.zeros(E)
  gates = stack["layers_1_to_1"]["block_0"]["block"]["channel"]["gates_NE"]
  for i, gates_NE in enumerate(gates):
    for row, n in zip(np.asarray(gates_NE).reshape(B, T, E), np.sum(depth_BT >= i, axis=1)):
      count_E += np.sum(row[:n] != 0, axis=0)
  np.testing.assert_allclose(line["load"][1], count_E / count_E.sum(), rtol=1e-6)
  assert 0 < np.sum(depth_BT > 0) < depth_BT.size


class _Labels:
  """Cross-entropy of the next byte."""

  def loss(self, outputs, batch):
    return losses.cross_entropy(outputs, batch["inputs"], np.ones((B, T), np.float32)), {}


def test_a_policy_that_lets_all_in_has_the_profile_of_the_plain_layers():
  """A fresh p-MoD weighs every token by 1."""
  mixers = (functools.partial(Attention, heads=2, head_dim=4, rope_theta=0.0),) * 2
  routed = _model(mixers, parts.Tanh, functools.partial(PMoD, mean_ratio=1.0, decay=False))
  params = _parameters(routed)
  run = params["stack"]["scan_0_to_1"]["block_0"]
  fresh = {**params["stack"], "scan_0_to_1": {"block_0": {**run, "router": {"kernel": 0 * run["router"]["kernel"]}}}}
  plain = {**params["stack"], "scan_0_to_1": {"block_0": run["block"]}}
  def profile(model, stack):
    def of_params(params):
      found = diagnostics.of_model(model, _Labels(), params, {}, BATCH)
      return {name: found[name] for name in found if name not in ("gradient_norm", "skip_loss")}
    return jax.jit(of_params)({**params, "stack": stack})
  got, want = profile(routed, fresh), profile(_model(mixers, parts.Tanh), plain)
  np.testing.assert_array_equal(got.pop("routing")["applied"], 2)
  assert {*got} == {*want} and np.all(np.isfinite(want["attention_entropy"]))
  for name in want:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_recursion_that_is_left_out_is_a_layer_less():
  """Its first token would else get x added once more: that of the paper's combination, whatever the block does."""
  model = _model((parts.Mean,) * 3, parts.Tanh, RECURSIVE)
  params = _parameters(model)
  stack = dict(params["stack"])
  del stack["layers_1_to_1"]
  stack["layers_1_to_1"] = stack.pop("layers_2_to_2")
  two = _model((parts.Mean,) * 2, parts.Tanh, scan=False)
  logits = jax.jit(lambda p, skip: model.apply({"params": p, "skip": {"stack": {"layer": skip}}}, INPUTS)[0])
  want = jax.jit(lambda p: two.apply({"params": p}, INPUTS)[0])({**params, "stack": stack})
  np.testing.assert_allclose(logits(params, 1), want, rtol=1e-5, atol=1e-6)
  assert np.abs(logits(params, -1) - want).max() > 1e-2


def test_what_nobody_looks_at_is_not_in_the_program(monkeypatch):
  model = _model((parts.Mean,) * 2, policy=functools.partial(MixtureOfDepths, ratio=0.5))
  def text(mutable):
    run = lambda params: model.apply({"params": params}, INPUTS, mutable=mutable)
    return str(jax.make_jaxpr(run)(_parameters(model)))
  probed, looked_at = text(["metrics"]), text(["metrics", "depth"])
  monkeypatch.setattr(probe, "show", lambda *_: None)
  assert text(["metrics"]) == text(["metrics", "depth"]) == probed != looked_at


@functools.cache
def _program(diagnosed):
  return programs.make(toy.config(
      optim__steps=30, train__save_every=15, train__eval_every=10, train__diagnostics=diagnosed,
      model__channel__name="moe.MoE", model__channel__experts=E, model__channel__hidden=8))


@functools.cache
def _program_profile():
  """Compiled once; `diagnostics.profile` jits anew for every run."""
  return diagnostics.profile(_program(True))


class _Killed(Exception):
  pass


class _Progress:
  """Dies when it hears of step `last`."""

  def __init__(self, last=10**9):
    self.last = last

  def update(self, step, *_):
    if step >= self.last:
      raise _Killed


def _train(diagnosed, folder, progress=_Progress()):
  folder.mkdir(exist_ok=True)
  compiled = _program_profile()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(diagnostics, "profile", lambda program: compiled)
    return train(_program(diagnosed), 0, folder, [folder], {"config_id": "toy", "data": "none"}, lambda line: None,
                 progress)


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
  folder = tmp_path_factory.mktemp("routed") / "run"
  return folder, _train(True, folder)


def test_a_run_that_routes_leaves_a_line_at_every_evaluation_and_a_figure(routed, monkeypatch):
  folder, outcome = routed
  lines = metrics.read(folder / "routing.jsonl")
  assert [line["step"] for line in lines] == [10, 20, 30] and all(line["layers"] == ["0 channel"] for line in lines)
  np.testing.assert_allclose(np.sum([line["load"] for line in lines], axis=-1), 1, rtol=1e-6)
  assert {*metrics.read(folder / "depth.jsonl")[0]} == {"step", *diagnostics.NAMES}
  for figure in ((runs.plots, "loss_curve"), (runs.depth_plot, "by_depth")):
    monkeypatch.setattr(*figure, lambda *_, **_and: None)
  said = runs._leave_behind("toy", _program(True), outcome.state, folder, outcome.finals[0], {}, "nats", draw=True)
  assert f"figure {folder / 'figures' / 'routing.png'}" in said and (folder / "figures" / "routing.png").stat().st_size


def test_the_switch_changes_no_bit_of_what_is_trained_by_routing(routed, tmp_path):
  folder, outcome = routed
  final, = _train(False, tmp_path / "plain").finals
  assert {k: v for k, v in outcome.finals[0].items() if not k.startswith("depth/")} == final
  assert metrics.deterministic_lines(folder / "metrics.jsonl") == (
      metrics.deterministic_lines(tmp_path / "plain" / "metrics.jsonl"))
  assert not (tmp_path / "plain" / "routing.jsonl").exists()


def test_a_killed_run_leaves_the_lines_of_the_unbroken_one(routed, tmp_path):
  with pytest.raises(_Killed):
    _train(True, tmp_path / "cut", _Progress(last=25))
  # The newest checkpoint is of step 15: the last of these lines is dropped and written again.
  assert [line["step"] for line in metrics.read(tmp_path / "cut" / "routing.jsonl")] == [10, 20]
  _train(True, tmp_path / "cut")
  assert (tmp_path / "cut" / "routing.jsonl").read_bytes() == (routed[0] / "routing.jsonl").read_bytes()
