"""Profiles by depth against slow sums over a model walked layer by layer, and what they leave untouched."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from layers import context, probe
from layers.classifier import Classifier
from layers.lm import LM
from layers.mixers.attention import Attention
from layers.placement import placement
from layers.stack import Block, Stack
from research import depth_plot, diagnostics, losses
from research import program as programs, runs
from research.errors import ConfigError
from research.metrics import deterministic_lines, read
from research.train import train
from tests.layers import toy as parts
from tests.research import toy

# Dims: B batch, T tokens, D width, H heads, G groups, K head width, V vocabulary.
B, T, D, V = 3, 6, 8, 7
SEEDS = (3, 4, 7)  # as many as tests/research/seeds_test.py, which compiles the same step
ATTENTION = functools.partial(Attention, heads=4, head_dim=4, groups=2, rope_theta=0.0)
BOTH_WAYS = functools.partial(ATTENTION, direction="bidirectional")
NARROW = functools.partial(ATTENTION, window=2)
# Two documents; one and padding; one.
IDS_BT = np.asarray([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, -1, -1], [2, 2, 2, 2, 2, 2]], np.int32)


class Case(NamedTuple):
  """A model, by the mixers of its layers and how they are put together."""

  mixers: tuple
  place: str = "pre"
  model: type = LM
  scan: bool = True
  remat: str = "none"
  packed: bool = False

  def build(self):
    place = placement(self.place, len(self.mixers))
    stack = functools.partial(Stack, self.mixers, parts.Tanh, parts.Soft, place, scan=self.scan, remat=self.remat)
    return self.model(V, D, stack)

  def batch(self):
    draw = np.random.default_rng(1)
    if self.model is Classifier:
      labels_B = draw.integers(0, V, B).astype(np.int32)
      return {"inputs": draw.standard_normal((B, T, 5), np.float32), "labels": labels_B,
              "weights": np.ones(B, np.float32)}
    batch = dict(zip(("inputs", "labels"), draw.integers(0, V, (2, B, T)).astype(np.int32)))
    batch["weights"] = np.ones((B, T), np.float32)
    if self.packed:
      batch |= {"segment_ids": IDS_BT, "weights": (IDS_BT >= 0).astype(np.float32)}
    return batch

  def parameters(self):
    params = parts.parameters(self.build(), 0, self.batch()["inputs"][:1])
    # Maps of about unit gain, so that no layer drowns the next.
    return jax.tree.map(lambda p: p if p.ndim == 1 else p * np.float32(0.7), params)


MIXED = Case((parts.Mean, NARROW) * 2, packed=True)
CASES = {
    "mixed_packed": MIXED,
    "peri_irregular_remat": Case((parts.Mean, ATTENTION, ATTENTION), "peri", remat="full"),
    "deepnorm_unrolled": Case((ATTENTION, parts.Mean), "deepnorm", scan=False, packed=True),
    "classifier": Case((BOTH_WAYS,) * 2, "layernorm_scaling", Classifier),
}


@dataclasses.dataclass(frozen=True)
class Labels:
  """Cross-entropy of whatever the batch asks for."""

  def loss(self, outputs, batch):
    return losses.cross_entropy(outputs, batch["labels"], batch["weights"]), {}


@functools.cache
def _profile(case):
  return jax.jit(functools.partial(diagnostics.of_model, case.build(), Labels()))


def _by_layer(params, runs):
  """Returns the parameters of every layer, taken out of their scans."""
  found = []
  for run in runs:
    stop = run.first + run.period * run.repeats - 1
    node = params[f"{'scan' if run.repeats > 1 else 'layers'}_{run.first}_to_{stop}"]
    for layer in range(stop - run.first + 1):
      repeat, block = divmod(layer, run.period)
      pick = (lambda leaf: leaf[repeat]) if run.repeats > 1 else (lambda leaf: leaf)
      found.append(jax.tree.map(pick, node[f"block_{block}"]))
  return found


@functools.cache
def _block(mixer, pre, out, post):
  block = Block(mixer, parts.Tanh, parts.Soft, pre, out, post)
  return jax.jit(lambda p, x, in_scale, alpha, ids: block.apply(
      {"params": p}, x, context.first({}), None, in_scale, alpha, ids)[0])


def _soft(scale, x):
  return np.asarray(scale) * x / (1 + np.mean(np.abs(x), axis=-1, keepdims=True))


@functools.cache
def _ends(case):
  """Returns (what comes before the layers, the mean loss of what comes after them), jitted."""
  batch, place = case.batch(), placement(case.place, len(case.mixers))
  norm = lambda params, name, x: parts.Soft().apply({"params": params["stack"][name]}, x)

  def embed(params):
    table = params["embedding"]
    x_BTD = table["embedding"][batch["inputs"]] if case.model is LM else (
        batch["inputs"] @ table["kernel"] + table["bias"][None, None])
    return norm(params, "embed_norm", x_BTD) if place.embed_norm else x_BTD

  def loss(params, x_BTD):
    x_BTD = norm(params, "final_norm", x_BTD) if place.final_norm else x_BTD
    if case.model is Classifier:
      logits = x_BTD.mean(axis=1) @ params["head"]["kernel"] + params["head"]["bias"][None]
    else:
      logits = x_BTD @ params["head"]["kernel"]
    nats = jax.nn.logsumexp(logits, axis=-1) - (logits * jax.nn.one_hot(batch["labels"], V)).sum(-1)
    return (nats * batch["weights"]).sum() / batch["weights"].sum()

  return jax.jit(embed), jax.jit(loss)


def _walk(case, params, layers, without=None):
  """Returns (residual streams before and after all layers, mean loss), one block after the other."""
  place, ids_BT, (embed, loss) = placement(case.place, len(layers)), case.batch().get("segment_ids"), _ends(case)
  streams = [embed(params)]
  for i, layer in enumerate(layers):
    if i == without:
      streams.append(streams[-1])
      continue
    block = _block(case.mixers[i], place.pre[i], place.out[i], place.post[i])
    streams.append(block(layer, streams[-1], np.float32(place.in_scale[i]), np.float32(place.alpha[i]), ids_BT))
  return streams, loss(params, streams[-1])


def _entropy(mixer, p, h_BTD, ids_BT):
  """Returns the entropy of every row of the attention matrix of real tokens, averaged: loops and float64."""
  made, found = mixer(parent=None), []
  q_BTHK, k_BTGK = (np.einsum("btd,dhk->bthk", h_BTD, np.asarray(p[name]["kernel"], np.float64))
                    for name in ("query", "key"))
  for b, t in np.argwhere(ids_BT >= 0):
    sees = [s for s in range(T) if ids_BT[b, s] == ids_BT[b, t]
            and (s <= t or made.direction == "bidirectional") and (not made.window or abs(t - s) < made.window)]
    for h in range(made.heads):
      scores = k_BTGK[b, sees, h // (made.heads // made.groups)] @ q_BTHK[b, t, h] / np.sqrt(made.head_dim)
      odds = np.exp(scores - scores.max())
      share = odds / odds.sum()
      found.append(-np.sum(share * np.log(share)))
  return np.mean(found)


@pytest.mark.parametrize("name", CASES)
def test_a_profile_is_what_a_walk_through_the_layers_finds(name):
  case = CASES[name]
  params, batch = case.parameters(), case.batch()
  place = placement(case.place, len(case.mixers))
  layers = _by_layer(params["stack"], case.build().stack(parent=None).runs())
  streams, loss = _walk(case, params, layers)
  ids_BT = batch.get("segment_ids", np.zeros((B, T), np.int32))
  real = [np.asarray(x, np.float64)[ids_BT >= 0] for x in streams]
  grads = jax.grad(lambda layers: _walk(case, params, layers)[1])(layers)
  want = {
      "residual_variance": [x.var(axis=1).mean() for x in real[1:]],
      "update_norm": [np.mean(np.linalg.norm(new - old, axis=1) / np.linalg.norm(old, axis=1))
                      for old, new in zip(real, real[1:])],
      "gradient_norm": [np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grad))) for grad in grads],
      "massive_activation": [np.abs(x).max() / np.median(np.abs(x)) for x in real[1:]],
      "skip_loss": [_walk(case, params, layers, without=i)[1] - loss for i in range(len(layers))],
      "attention_entropy": []}
  for i, (mixer, layer) in enumerate(zip(case.mixers, layers)):
    h_BTD = np.asarray(streams[i], np.float64)
    if place.pre[i]:
      h_BTD = _soft(layer["mixer_pre_norm"]["scale"], h_BTD)
    want["attention_entropy"].append(
        np.nan if mixer is parts.Mean else
        _entropy(mixer, layer["mixer"], place.in_scale[i] * h_BTD, ids_BT))
  got = _profile(case)(params, {}, batch)
  assert {*got} == {*diagnostics.NAMES} == {*want}
  for key in want:
    np.testing.assert_allclose(got[key], want[key], rtol=2e-5, atol=2e-6, err_msg=key)


def test_scanned_is_unrolled():
  params = MIXED.parameters()
  layers = _by_layer(params["stack"], MIXED.build().stack(parent=None).runs())
  stack = {k: v for k, v in params["stack"].items() if k.endswith("norm")}
  stack |= {f"layers_{i}_to_{i}": {"block_0": layer} for i, layer in enumerate(layers)}
  got = _profile(MIXED._replace(scan=False))({**params, "stack": stack}, {}, MIXED.batch())
  jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6),
               got, _profile(MIXED)(params, {}, MIXED.batch()))


def _zeroed(params, *modules):
  """Returns the parameters with the kernels of the named modules of all layers set to 0."""
  inside = lambda path: "stack" in {e.key for e in path} and {*modules} & {e.key for e in path}
  return jax.tree_util.tree_map_with_path(lambda path, p: 0 * p if inside(path) else p, params)


def test_a_layer_that_adds_nothing_costs_exactly_nothing():
  got = _profile(MIXED)(_zeroed(MIXED.parameters(), "mixer", "channel"), {}, MIXED.batch())
  np.testing.assert_array_equal(got["skip_loss"], 0)
  np.testing.assert_array_equal(got["update_norm"], 0)


@pytest.mark.parametrize("name, seen", [
    ("mixed_packed", [1, 2, 1, 2, 2, 2, 1, 2, 2, 2, 1, 2, 2, 2, 2, 2]), ("peri_irregular_remat", [1, 2, 3, 4, 5, 6]),
    ("classifier", [T])], ids=["window_of_two", "causal", "bidirectional"])
def test_blind_queries_have_the_entropy_of_what_they_may_see(name, seen):
  case = CASES[name]
  got = _profile(case)(_zeroed(case.parameters(), "query"), {}, case.batch())["attention_entropy"]
  want = [np.nan if mixer is parts.Mean else np.mean(np.log(seen)) for mixer in case.mixers]
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_padding_is_not_looked_at():
  """Other tokens in its place change no number, though they change the stream there."""
  batch = MIXED.batch()
  other = batch | {"inputs": np.where(IDS_BT < 0, (batch["inputs"] + 1) % V, batch["inputs"])}
  assert np.any(other["inputs"] != batch["inputs"])
  run = functools.partial(_profile(MIXED), MIXED.parameters(), {})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run(batch), run(other))


def test_what_nobody_looks_at_is_not_in_the_program(monkeypatch):
  model, batch = MIXED.build(), MIXED.batch()
  params = jax.eval_shape(lambda: MIXED.parameters())
  def text(mutable):
    run = lambda p: model.apply({"params": p}, batch["inputs"], None, batch["segment_ids"], mutable=mutable)
    return str(jax.make_jaxpr(run)(params))
  probed, looked_at = text(["losses"]), text(["losses", "depth"])
  init = lambda: str(jax.make_jaxpr(model.init)(jax.random.key(0), batch["inputs"]))
  probed_init = init()
  monkeypatch.setattr(probe, "show", lambda *_: None)
  assert text(["losses"]) == text(["losses", "depth"]) == probed != looked_at
  assert init() == probed_init


@functools.cache
def _program(diagnosed, seeds=0):
  return programs.make(toy.config(train__diagnostics=diagnosed, train__eval_every=10), seeds=seeds)


@functools.cache
def _program_profile(seeds=0):
  """Compiled once; `diagnostics.profile` jits anew for every run."""
  return diagnostics.profile(_program(True, seeds))


@pytest.fixture(scope="module", autouse=True)
def three_rows():
  """A profile reads 3 rows of 8 tokens of a batch that is spread over 8 devices."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(diagnostics, "TOKENS", 24)
    yield


class _Killed(Exception):
  pass


class _Progress:
  """Dies when it hears of step `last`."""

  def __init__(self, last=10**9):
    self.last = last

  def update(self, step, *_):
    if step >= self.last:
      raise _Killed


def _train(diagnosed, folder, progress=_Progress(), seeds=()):
  folder.mkdir(exist_ok=True)
  outputs = [folder / str(i) for i in seeds] or [folder]
  compiled = _program_profile(len(seeds))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(diagnostics, "profile", lambda program: compiled)
    outcome = train(_program(diagnosed, len(seeds)), np.asarray(seeds, np.int32) if seeds else 0, folder, outputs,
                    {"config_id": "toy", "data": "none"}, lambda line: None, progress)
  return outcome.finals


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory):
  folder = tmp_path_factory.mktemp("diagnosed") / "run"
  return folder, _train(True, folder)[0]


def test_the_switch_changes_no_bit_of_what_is_trained(diagnosed, tmp_path):
  folder, final = diagnosed
  plain, = _train(False, tmp_path / "plain")
  assert {k: v for k, v in final.items() if not k.startswith("depth/")} == plain
  assert not (tmp_path / "plain" / "depth.jsonl").exists()
  deterministic = lambda at: deterministic_lines(at / "metrics.jsonl")
  assert deterministic(folder) == deterministic(tmp_path / "plain")
  jaxprs = [str(_program(on).step.trace(_program(on).abstract, None).jaxpr) for on in (True, False)]
  assert jaxprs[0] == jaxprs[1]


def test_every_evaluation_leaves_a_line_and_the_last_one_scalars(diagnosed):
  folder, final = diagnosed
  records = read(folder / "depth.jsonl")
  assert [r["step"] for r in records] == [10, 20, 30, 40, 50, 60]
  for record in records:
    assert list(record) == ["step", *diagnostics.NAMES]
    assert all(np.isnan(record["attention_entropy"])) and np.all(np.isfinite(record["skip_loss"]))
  last = {k: v for k, v in final.items() if k.startswith("depth/")}
  assert last == diagnostics.summary({k: np.asarray(v) for k, v in records[-1].items()})


def test_a_killed_run_leaves_the_lines_of_the_unbroken_one(diagnosed, tmp_path):
  with pytest.raises(_Killed):
    _train(True, tmp_path / "cut", _Progress(last=60))
  # The newest checkpoint is of step 40: the last of these lines is dropped and written again.
  assert [r["step"] for r in read(tmp_path / "cut" / "depth.jsonl")] == [10, 20, 30, 40, 50]
  final, = _train(True, tmp_path / "cut")
  assert final == diagnosed[1]
  assert (tmp_path / "cut" / "depth.jsonl").read_bytes() == (diagnosed[0] / "depth.jsonl").read_bytes()


def test_a_run_cut_after_its_last_save_has_the_scalars_of_the_unbroken_one(diagnosed):
  folder, final = diagnosed
  lines = (folder / "depth.jsonl").read_bytes()
  assert _train(True, folder) == [final]
  assert (folder / "depth.jsonl").read_bytes() == lines


def test_vmapped_seeds_are_profiled_like_each_alone(tmp_path):
  finals = _train(True, tmp_path / "seeds", seeds=SEEDS)
  program = _program(True, len(SEEDS))
  state = program.init(np.asarray(SEEDS, np.int32))
  together = diagnostics.records(program, _program_profile(len(SEEDS)), state, 0)
  for n, seed in enumerate(SEEDS):
    alone, = diagnostics.records(_program(True), _program_profile(), jax.tree.map(lambda x: x[n], state), 0)
    for key in alone:
      np.testing.assert_allclose(together[n][key], alone[key], rtol=1e-4, atol=1e-6, err_msg=key)
    assert [r["step"] for r in read(tmp_path / "seeds" / str(seed) / "depth.jsonl")] == [10, 20, 30, 40, 50, 60]
  assert len({final["depth/skip_loss/max"] for final in finals}) == len(SEEDS)


def test_a_profile_reads_the_first_rows_of_a_batch_that_is_spread_over_devices():
  program = _program(True)
  state = program.init(0)
  got, = diagnostics.records(program, _program_profile(), state, 0)
  rows = jax.tree.map(lambda x: np.asarray(x)[:3], jax.jit(program.task.batch, static_argnums=0)("validation", 0))
  want = jax.jit(functools.partial(diagnostics.of_model, program.model, program.task))(
      jax.device_get(state.params), {}, rows)
  for key in want:
    np.testing.assert_allclose(got[key], want[key], rtol=1e-4, atol=1e-6, err_msg=key)


def test_scalars_are_of_the_layers_that_have_a_number():
  record = {name: np.full(4, np.nan) for name in diagnostics.NAMES}
  record["attention_entropy"] = np.asarray([np.nan, 3.0, 1.0, np.nan])
  record["skip_loss"] = np.asarray([-1.0, np.inf, -2.0, -6.0])
  assert diagnostics.summary(record) == {
      "depth/attention_entropy/first": 3.0, "depth/attention_entropy/last": 1.0,
      "depth/attention_entropy/mean": 2.0, "depth/attention_entropy/max": 3.0,
      "depth/skip_loss/first": -1.0, "depth/skip_loss/last": -6.0,
      "depth/skip_loss/mean": -3.0, "depth/skip_loss/max": -1.0}


def test_every_number_has_its_panel_and_a_run_draws_them(diagnosed):
  folder, final = diagnosed
  assert tuple(depth_plot.PANELS) == diagnostics.NAMES
  lines = runs._leave_behind("toy", _program(True), None, folder, final, {}, "nats", True)
  assert f"figure {folder / 'figures' / 'depth.png'}" in lines
  assert (folder / "figures" / "depth.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_without_a_stack_is_refused_by_name():
  config = toy.config(train__diagnostics=True)
  with pytest.raises(ConfigError, match=r"config.train.diagnostics=True.*'lm.LM' has embedding, layers"):
    diagnostics.check(config, {"layers": {}, "embedding": {}})
  diagnostics.check(toy.config(), {"layers": {}})
