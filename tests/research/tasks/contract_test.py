"""What the engine relies on, for every task: pure batches, partition by rows, refusals."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest

from research.data import prefetch
from research.tasks import delay
from research.tasks import facts
from research.tasks import glyphs
from research.tasks import images
from research.tasks import induction
from research.tasks import modular
from research.tasks import parity
from research.tasks import permutations
from research.tasks import recall
from research.tasks import selective_copy
from research.tasks import text

pytestmark = pytest.mark.usefixtures("own_cache")

MAKE = {
    "text": functools.partial(text.Bytes, tokens=16, batch_size=8),
    "images": functools.partial(images.Images, layout="patches", batch_size=8),
    "recall": functools.partial(recall.MultiQueryRecall, vocab=16, tokens=16, pairs=3, batch_size=8),
    "rebinding": functools.partial(recall.MultiQueryRecall, vocab=16, tokens=22, pairs=3, rebind=True,
                                   batch_size=8),
    "parity": functools.partial(parity.Parity, tokens=12, batch_size=8),
    "permutations": functools.partial(permutations.Permutations, tokens=11, batch_size=8),
    "modular": functools.partial(modular.ModularSum, modulus=5, tokens=11, batch_size=8),
    "selective_copy": functools.partial(selective_copy.SelectiveCopy, tokens=19, items=4, batch_size=8),
    "induction": functools.partial(induction.Induction, tokens=13, batch_size=8),
    "delay": functools.partial(delay.Delay, tokens=13, delay=3, batch_size=8),
    "facts": functools.partial(facts.Facts, facts=30, vocab=16, tokens=13, batch_size=8),
    "glyphs": functools.partial(glyphs.Glyphs, batch_size=8),
}
HOST = [name for name in MAKE if name in ("text", "images")]
every_task = pytest.mark.parametrize("name", MAKE)
host_task = pytest.mark.parametrize("name", HOST)

# A batch on the device, compiled once per task; `rows` is static as in the engine.
# Without optimization a compilation takes a third of the time.
on_device = jax.jit(lambda task, split, step, rows: task.batch(split, step, slice(*rows)),
                    static_argnums=(0, 1, 3), compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def make(folder):
  def build(name, **changes):
    extra = {"path": str(folder)} if name == "text" else {}
    return MAKE[name](**extra | changes)
  return build


def _batch(task, split, step, rows=(None,)):
  if task.on_device:
    return jax.tree.map(np.asarray, on_device(task, split, step, rows))
  return task.batch(split, step, slice(*rows))


def _same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@host_task
def test_the_batch_at_n_is_that_of_the_unbroken_stream(make, name):
  unbroken = {}
  task = make(name)
  with prefetch.stream(lambda step: task.batch("train", step)) as batches:
    for _ in range(120):
      step, batch = next(batches)
      unbroken[step] = batch
  resumed = make(name)
  for step in np.random.default_rng(0).integers(0, 120, 30):
    assert _same(resumed.batch("train", int(step)), unbroken[step]), step


@pytest.mark.parametrize("name", ["recall", "parity"])
def test_a_traced_batch_is_the_eager_one(make, name):
  task = make(name)
  for step in (0, 9):
    assert _same(_batch(task, "train", step), jax.tree.map(np.asarray, task.batch("train", step)))


# On the device every part is a compilation: uneven ones say as much as many.
CUTS = [(name, cuts) for name in MAKE
        for cuts in ([(0, 4, 8), tuple(range(9))] if name in HOST else [(0, 3, 8)])]


@pytest.mark.parametrize("name, cuts", CUTS, ids=[f"{name}-{len(cuts) - 1}" for name, cuts in CUTS])
def test_hosts_partition_each_batch(make, name, cuts):
  task = make(name)
  for split, step in (("train", 5), ("validation", 1))[:1 if task.on_device else 2]:
    whole = _batch(task, split, step)
    parts = [_batch(task, split, step, cut) for cut in zip(cuts, cuts[1:])]
    assert _same(whole, {k: np.concatenate([p[k] for p in parts]) for k in whole})


@every_task
def test_splits_steps_and_seeds_differ(make, name):
  task, other = make(name), make(name, seed=1)
  batches = [_batch(task, "train", 0), _batch(task, "train", 1), _batch(task, "validation", 0),
             _batch(other, "train", 0)]
  rows = [{row.tobytes() for row in b["inputs"]} for b in batches]
  assert all(rows[i] != rows[j] for i in range(4) for j in range(i))


@every_task
def test_a_batch_has_the_shapes_and_types_of_the_contract(make, name):
  task = make(name)
  train, validation = _batch(task, "train", 0), _batch(task, "validation", 0)
  form = lambda batch: {k: (v.shape, v.dtype) for k, v in batch.items()}
  assert form(train) == form(validation)
  assert train["weights"].dtype == np.float32 and train["weights"].shape == train["labels"].shape
  assert train["labels"].dtype == np.int32 and len(train["inputs"]) == task.batch_size
  (count, limit), = task.model_fields().items()
  assert count in ("vocab", "classes") and 0 <= train["labels"].min() and train["labels"].max() < limit
  assert train.keys() - {"inputs", "labels", "weights"} <= {"segment_ids"}


@every_task
def test_the_right_answer_costs_nothing_and_the_weights_are_counted(make, name):
  task = make(name)
  batch = _batch(task, "train", 0)
  limit, = task.model_fields().values()
  sure = 50.0 * np.eye(limit, dtype=np.float32)[batch["labels"]]
  (total, weight), metrics = jax.jit(task.loss)(sure, batch)
  assert weight == batch["weights"].sum() > 0 and total < 1e-5 * weight
  assert metrics["accuracy"][0] == metrics["accuracy"][1] == weight


@every_task
def test_the_fingerprint_is_stable_and_knows_the_order(make, name):
  first, again, other = (make(name, seed=s).fingerprint() for s in (0, 0, 1))
  assert json.loads(json.dumps(first)) == json.loads(json.dumps(again)) != json.loads(json.dumps(other))
  assert make(name, batch_size=4).fingerprint() != first


# --- refusals -------------------------------------------------------------------

BAD = [math.nan, math.inf, -math.inf, -1, 0, 1.5, 2**63, -(2**63), 10**5000, 1e300, "", "x" * 5000,
       "a\0b", "../..", "/no/such\nplace", "\udcff", "ключ", None, True, (), [1], {"a": 1}, b"x"]
FIELDS = [(name, field.name) for name in MAKE for field in dataclasses.fields(MAKE[name].func)]


@pytest.mark.parametrize("name, field", FIELDS, ids=[f"{n}.{f}" for n, f in FIELDS])
def test_any_value_of_any_field_works_or_is_refused_in_one_line(make, name, field):
  known = tuple(f.name for f in dataclasses.fields(MAKE[name].func))
  for value in BAD:
    if field == "path" and value in ("", "../..", True):
      continue  # "" means the data set, "../.." is a folder with a lot of text
    try:
      task = make(name, **{field: value})
      if not task.on_device:
        task.batch("train", 0)
    except ValueError as error:
      line = str(error)
      assert line.startswith(tuple(f"{k}=" for k in known)) and "\n" not in line, (value, line)
      assert len(line) < 700


@pytest.mark.parametrize("name, changes, match", [
    ("text", {"tokens": 0}, r"^tokens=0 must be at least 1; "),
    ("text", {"tokens": 4000}, r"^tokens=4000 is more than the \d+ bytes that validation has in"),
    ("text", {"batch_size": -3}, r"^batch_size=-3 must be at least 1"),
    ("text", {"batch_size": 2**27}, r"^batch_size=134217728 must be at most 16777216"),
    ("text", {"seed": math.nan}, r"^seed=nan must be a whole number"),
    ("text", {"path": "", "dataset": "../etc"}, r"^dataset='../etc' is not a TFDS name"),
    ("images", {"layout": "spiral"}, r"^layout='spiral' must be one of pixels, patches"),
    ("images", {"patch": 3}, r"^patch=3 must divide the 8 x 8 pixels of 'digits'"),
    ("recall", {"vocab": 7}, r"^vocab=7 must be at least 8; half of it without 0 must hold 3 keys"),
    ("recall", {"pairs": 5}, r"^pairs=5 must be at most 4; a pair takes 4 of the 16 tokens"),
    ("recall", {"power": math.nan}, r"^power=nan must be a number"),
    ("recall", {"rebind": 1}, r"^rebind=1 must be one of False, True"),
    ("rebinding", {"pairs": 4}, r"^pairs=4 must be at most 3; a pair takes 6 of the 22 tokens"),
    ("rebinding", {"vocab": 11}, r"^vocab=11 must be at least 12; half of it must hold 6 values"),
    ("parity", {"tokens": True}, r"^tokens=True must be a whole number"),
    ("permutations", {"group": "S6"}, r"^group='S6' must be one of S3, S4, S5"),
    ("permutations", {"moves": "some"}, r"^moves='some' must be one of all, swaps"),
    ("permutations", {"group": "S5", "batch_size": 2**22}, r"^batch_size=4194304 must be at most 2236962"),
    ("modular", {"modulus": 1}, r"^modulus=1 must be at least 2; sums are told apart"),
    ("modular", {"tokens": 2**20 + 1}, r"^tokens=1048577 must be at most 1048576"),
    ("modular", {"counting": 0}, r"^counting=0 must be one of False, True"),
    ("selective_copy", {"items": 10}, r"^items=10 must be at most 9; each takes 2 of the 19 tokens"),
    ("selective_copy", {"vocab": 3}, r"^vocab=3 must be at least 4; it holds noise, marker"),
    ("induction", {"tokens": 2}, r"^tokens=2 must be at least 3; two are triggers"),
    ("induction", {"vocab": 2}, r"^vocab=2 must be at least 3; it holds the trigger"),
    ("delay", {"delay": 13}, r"^delay=13 must be at most 12; an echo must come within the 13"),
    ("facts", {"facts": 65}, r"^facts=65 must be at most 64; 8 tokens make 64 keys of two"),
    ("facts", {"vocab": 10}, r"^facts=30 must be at most 25; 5 tokens make 25 keys of two"),
    ("facts", {"tokens": 1}, r"^tokens=1 must be at least 2; a question takes two"),
])
def test_bad_fields_are_refused_with_numbers_and_rule(name, changes, match, folder):
  extra = {"path": str(folder)} if name == "text" else {}
  with pytest.raises(ValueError, match=match):
    task = MAKE[name](**extra | changes)
    task.batch("train", 0)


@every_task
def test_an_unknown_split_is_refused(make, name):
  with pytest.raises(ValueError, match="^split='test' must be one of train, validation"):
    make(name).batch("test", 0)


@host_task
def test_a_step_before_the_first_is_refused(make, name):
  with pytest.raises(ValueError, match="^step=-1 must be at least 0"):
    make(name).batch("train", -1)
