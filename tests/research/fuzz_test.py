"""No value that a person can type makes jax speak: a run builds, or one line says which key is wrong.

Leaves and fields of every experiment are set to values of all kinds by a seeded generator. The
commands take the path of `--dry_run`; what differs from the command line is that the text is small.
"""

import contextlib
import io
import string
import time

import jax
import numpy as np
import pytest

from research import config as configs
from research import run

WHOLE = ["0", "1", "2", "3", "5", "7", "12", "64", "-1", "-7", "1000", "100000", "1000000000",
         str(2**31), str(2**63), "9" * 60, "1e3", "0x10", "1_0", "٣", "", "2.5", "nan", "None"]
REAL = ["0", "1", "0.5", "0.999", "1.5", "-0.1", "-3", "1e-30", "1e-320", "1e30", "1e308", "1e999",
        "nan", "inf", "-inf", "NaN", "", "0,5", "1e", "½", "None", "true"]
WORDS = ["", " ", "none", "None", "pre", "mix:1", "mix:99", "mixer", "attention", "../x", "/", "\0",
         "os.system", "a.B", "a.B" * 1000, "Ünïcødé", "💥", "x" * 10_000, "{x}", "%s", "-1", "1",
         "attention.Attention", "scalar_decay.ScalarDecayAttention", "layer_norm.LayerNorm",
         "mlp.MLP", "parity.Parity", "recall.MultiQueryRecall", "muon", "sgd", "lion", "adam",
         "linear", "constant", "bfloat16", "float64", "relu", "full", "dots", "__class__"]
FLAGS = ["true", "false", "1", "0", "yes", "2", "", "None", "TRUE "]
LISTS = ["", ",", "mixer", "attention", "mixer,attention", "mixer,,attention", "()", "('mixer',)",
         "norm", "mixer," * 50, "mixer;attention", "channel", "x"]
VALUES = {bool: FLAGS, int: WHOLE, float: REAL, str: WORDS, tuple: LISTS}
COMMANDS = 60  # of each experiment one or two


def _leaves(config, at=""):
  """Yields (key, type) of every leaf that is set, and of what may be set besides."""
  for name in config:
    if hasattr(config[name], "keys"):
      yield from _leaves(config[name], f"{at}{name}.")
    else:
      yield f"{at}{name}", config.get_type(name)
  kind = configs._kind(f"{at}name") if "name" in config else None
  for name, of in (configs._settable(kind, config.name, at) if kind else {}).items():
    if name not in config and of in VALUES:
      yield f"{at}{name}", of


def _misspelt(key, draw):
  at = int(draw.integers(len(key)))
  letter = draw.choice(list(string.ascii_lowercase + "._-=é"))
  return [key[:at] + key[at + 1:], key[:at] + letter + key[at:], key[:at] + letter + key[at + 1:],
          key.upper(), f"{key}.{letter}", key.rpartition(".")[0] or letter][draw.integers(6)]


def _commands(count):
  """Returns [(experiment, key, value)], the same at every call."""
  draw = np.random.default_rng(16)
  found = []
  presets = {name: configs.load(_spec(name))[2] for name in configs.experiment_names()}
  leaves = {name: list(_leaves(config)) for name, config in presets.items()}
  for n in range(count):
    name = sorted(presets)[n % len(presets)]
    key, kind = leaves[name][draw.integers(len(leaves[name]))]
    # One in five values is of another kind than the leaf, one in eight keys is misspelt.
    kind = kind if draw.random() < 0.8 else list(VALUES)[draw.integers(len(VALUES))]
    value = VALUES[kind][draw.integers(len(VALUES[kind]))]
    found.append((name, _misspelt(key, draw) if draw.random() < 0.125 else key, value))
  return found


def _spec(name):
  presets = configs.load_file(name).PRESETS
  return f"{name}:{'smoke' if 'smoke' in presets else presets[0]}"


def _refusal(text, name, *overrides):
  """Returns what a dry run writes to stderr, "" if the program could be built."""
  said, refused = io.StringIO(), io.StringIO()
  # Layers that share, grow or let tokens pass come in numbers; the others need one.
  whole = {"growth", "mixture_of_depths", "relaxed_recursion", "wide_net"}
  small = ["--config.model.depth=1"] * (name not in whole) + [f"--config.task.path={text}"] * (name == "byte_lm")
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(refused):
    code = run.main([f"--config={_spec(name)}", "--dry_run", *small, *overrides])
  assert code == (2 if refused.getvalue() else 0)
  return refused.getvalue()


def _broken_rule(refused, key):
  """Returns what is wrong with a refusal, "" for a good one."""
  section = key.partition(".")[0]
  if not (refused.startswith("error: ") and refused.count("\n") == 1 and len(refused) < 1200):
    return "not one line"
  if not any(f"config.{k}" in refused for k in (key, section)) and "=" not in key:
    return "does not name the key"
  return "Traceback" if "Traceback" in refused or "jax" in refused else ""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """A folder with 90 kB of text; the standard library would be listed 120 times."""
  folder = tmp_path_factory.mktemp("text")
  for n in range(30):
    (folder / f"{n}.txt").write_text(f"{n} words of text " * 200)
  before = jax.config.jax_compilation_cache_dir
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("STRATA_CACHE", str(folder.parent / "cache"))
    yield folder
  jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("part", range(2))
def test_a_random_override_builds_or_is_refused_in_one_line(text, part):
  _check_commands(text, _commands(COMMANDS)[part::2])


@pytest.mark.slow
def test_two_thousand_random_overrides(text):
  _check_commands(text, _commands(2000))


def _check_commands(text, commands):
  found, built = [], 0
  for name, key, value in commands:
    try:
      refused = _refusal(text, name, f"--config.{key}={value}")
      rule = _broken_rule(refused, key) if refused else ""
    except Exception as error:  # all of them, so that one run of the test shows every bad message
      refused, rule = f"{type(error).__name__}: {error}", "an exception"
    built += not refused
    if rule:
      found.append(f"{name} --config.{key}={value!r:.100}: {rule}: {refused:.500}")
  assert not found, "\n".join(found)
  assert 0.1 < built / len(commands) < 0.6  # both ends of the law were met


@pytest.mark.parametrize("override", [
    "model.width=1000000000", "model.depth=1000000", "model.channel.hidden=1000000000",
    "model.mixer.heads=100000000", "model.attention.max_tokens=2000000000", "model.mixer.conv=100000",
    "model.scan=false", "task.batch_size=1000000000", "task.tokens=10000000",
    "sample.tokens=1000000000", "mesh.fsdp=1000000000", "optim.accumulate=1000000000"])
def test_a_size_that_no_machine_holds_is_refused_at_once(text, override):
  key, _, value = override.partition("=")
  more = {"model.scan": ["--config.model.depth=600"],
          "model.attention.max_tokens": ["--config.model.pattern=attention"]}.get(key, [])
  begun = time.process_time()
  refused = _refusal(text, "byte_lm", *more, f"--config.{override}")
  assert refused and not _broken_rule(refused, key)
  assert time.process_time() - begun < 5


@pytest.mark.parametrize("override, says", [
    ("model.attention.groups=3", "config.model.attention.groups=3 must divide heads=4"),
    ("model.mixer.key_dim=0", "config.model.mixer.key_dim=0 must be at least 1"),
    ("model.max_positions=3", "config.model.max_positions=3; sample fewer"),
    ("task.path=/nowhere", "config.task.path='/nowhere' is not there"),
    ("optim.lr.x=1", "config.optim.lr=0.003 is a value, not a section"),
    ("mesh.tensor=3", "--fake_devices=6"),
    ("optim.accumulate=3", "config.optim.accumulate=3")])
def test_a_refusal_gives_key_value_and_rule(text, override, says):
  assert says in _refusal(text, "byte_lm", f"--config.{override}")
