"""What may import what, and what no source may contain: read from the syntax tree.

Dependencies run downward only, experiments -> (found by) research -> layers ->
pallas_kernels. Nothing here looks at text, so strings and comments do not count.
"""

import ast
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLOORS = ("pallas_kernels", "layers", "research", "experiments")
SOURCES = sorted(path.relative_to(ROOT) for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))

# Beside the standard library; research may use any package that setup.cfg names.
ALLOWED = {
    "pallas_kernels": {"jax", "numpy", "pallas_kernels"},
    "layers": {"jax", "flax", "einops", "numpy", "pallas_kernels", "layers"},
    "experiments": {"ml_collections", "research.claims"},
}
# What draws: its library is loaded by the function that draws, by nothing else.
DRAWING = {"bench", "plots"}
# One idea per file and folder; these few are parts of other ideas as well.
IDEAS = {"layers.mixers", "layers.norms", "layers.channel"}
SHARED = {"layers.norms.rms_norm"}

# Rivals of the bench, each loaded by the main function of a process of its own and by nothing else:
# no process of the project holds torch, and flash-linear-attention can be timed in no other way.
RIVALS = {"pallas_kernels/peers/fla_times.py": {"torch", "fla"}, "pallas_kernels/peers/jla_times.py": {"jla"}}

NEVER_IMPORTED = {"tensorflow", "torch", "pickle", "_pickle", "cloudpickle", "dill", "joblib",
                  "shelve", "marshal"}
NEVER_NAMED = {"eval", "exec", "__import__", "builtins.eval", "builtins.exec", "os.system",
               "os.popen", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load",
               "flax.linen.Dense", "flax.linen.DenseGeneral"}  # layers/dense.py is the same, and faster to train
NEVER_SET = {"shell", "allow_pickle"}


class Import(NamedTuple):
  """One imported name: the dotted module, what is taken from it, and whether a function does."""

  module: str
  name: str
  deferred: bool

  @property
  def path(self) -> str:
    return f"{self.module}.{self.name}" if self.name else self.module


def _imports(tree, package):
  """Yields the imports of a module of `package`, relative ones resolved."""
  deferred = {id(inner) for outer in ast.walk(tree)
              if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
              for inner in ast.walk(outer)}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield Import(alias.name, "", id(node) in deferred)
    elif isinstance(node, ast.ImportFrom):
      above = package.split(".")[:len(package.split(".")) + 1 - node.level] if node.level else []
      module = ".".join([*above, *([node.module] if node.module else [])])
      for alias in node.names:
        yield Import(module, alias.name, id(node) in deferred)


def _within(path, names):
  return any(path == name or path.startswith(f"{name}.") for name in names)


def _upward(source, path):
  """Yields the imports of `source`, the text of `path`, that its floor may not have."""
  floor, package = path.parts[0], ".".join(path.parts[:-1])
  own = package if path.stem == "__init__" else f"{package}.{path.stem}"
  for found in _imports(ast.parse(source), package):
    if found.module.partition(".")[0] in sys.stdlib_module_names:
      continue
    if floor == "research":
      legal = not _within(found.path, {"experiments", "tests"})
    else:
      allowed = ALLOWED[floor]
      if floor == "pallas_kernels" and DRAWING & {*path.parts, path.stem} and found.deferred:
        allowed = allowed | {"matplotlib"}
      if found.deferred:
        allowed = allowed | RIVALS.get(path.as_posix(), set())
      legal = _within(found.path, allowed)
    if package in IDEAS and _within(found.path, IDEAS):
      legal = legal and _within(found.path, SHARED | {own})
    if not legal:
      yield found.path


def _dangers(source, path=None):
  """Yields every import, name and keyword of `source`, the text of `path`, that no source may have."""
  rivals = RIVALS.get(path.as_posix(), set()) if path else set()
  tree, known = ast.parse(source), {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      known |= {alias.asname: alias.name for alias in node.names if alias.asname}
    elif isinstance(node, ast.ImportFrom):
      known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

  def dotted(node):
    if isinstance(node, ast.Attribute):
      return f"{dotted(node.value)}.{node.attr}"
    return known.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

  yield from (found.path for found in _imports(tree, "") if _within(found.path, NEVER_IMPORTED)
              and not (found.deferred and _within(found.path, rivals)))
  for node in ast.walk(tree):
    if isinstance(node, ast.Name | ast.Attribute) and dotted(node) in NEVER_NAMED:
      yield dotted(node)
    elif isinstance(node, ast.keyword) and node.arg in NEVER_SET:
      if not (isinstance(node.value, ast.Constant) and node.value.value is False):
        yield node.arg


def _all(scan):
  """Returns {file: what `scan` finds in it} for the files where it finds anything."""
  found = {str(path): list(scan((ROOT / path).read_text("utf-8"), path)) for path in SOURCES}
  return {path: names for path, names in found.items() if names}


def test_dependencies_run_downward_only():
  assert {path.parts[0] for path in SOURCES} == set(FLOORS)
  assert _all(_upward) == {}


def test_no_source_loads_code_from_data_or_starts_a_shell():
  assert _all(_dangers) == {}


@pytest.mark.parametrize("path, source, found", [
    ("pallas_kernels/a/b.py", "import flax", "flax"),
    ("pallas_kernels/a/b.py", "from layers import rope", "layers.rope"),
    ("pallas_kernels/a/b.py", "def f():\n  import matplotlib", "matplotlib"),
    ("pallas_kernels/bench.py", "import matplotlib", "matplotlib"),
    ("pallas_kernels/peers/fla_times.py", "import torch", "torch"),
    ("pallas_kernels/peers/protocol.py", "def f():\n  import torch", "torch"),
    ("layers/a.py", "def f():\n  from research import find", "research.find"),
    ("layers/a.py", "import optax", "optax"),
    ("layers/mixers/a.py", "from layers.mixers import b", "layers.mixers.b"),
    ("layers/mixers/a.py", "from layers.mixers.b import f", "layers.mixers.b.f"),
    ("layers/mixers/a.py", "from .b import f", "layers.mixers.b.f"),
    ("layers/mixers/a.py", "from . import b", "layers.mixers.b"),
    ("layers/mixers/a.py", "from layers.norms.layer_norm import f", "layers.norms.layer_norm.f"),
    ("layers/channel/a.py", "from ..mixers.b import f", "layers.mixers.b.f"),
    ("layers/norms/rms_norm_2.py", "import layers.norms.b", "layers.norms.b"),
    ("research/a.py", "from experiments import byte_lm", "experiments.byte_lm"),
    ("research/data/a.py", "if True:\n  import tests.b", "tests.b"),
    ("experiments/a.py", "import jax", "jax"),
    ("experiments/a.py", "from research import run", "research.run"),
    ("experiments/a.py", "from research.claims_of_others import f", "research.claims_of_others.f"),
])
def test_a_planted_import_is_found(path, source, found):
  assert list(_upward(source, pathlib.PurePath(path))) == [found]


@pytest.mark.parametrize("path, source", [
    ("pallas_kernels/a/b.py", "import math, jax.numpy as jnp\nfrom pallas_kernels import compat"),
    ("pallas_kernels/a/bench.py", "def f():\n  from matplotlib import pyplot"),
    ("pallas_kernels/peers/fla_times.py", "def f():\n  import torch"),
    ("layers/mixers/a.py", "from layers.norms.rms_norm import RMSNorm\nfrom layers import rope"),
    ("layers/stack.py", "from layers.placement import Placement"),
    ("research/a.py", "import optax\nfrom layers import stack"),
    ("experiments/a.py", "from research.claims import Claim\nimport ml_collections, math"),
])
def test_what_runs_downward_is_allowed(path, source):
  assert not list(_upward(source, pathlib.PurePath(path)))


@pytest.mark.parametrize("source, found", [
    ("import tensorflow as tf", "tensorflow"),
    ("from tensorflow.io import gfile", "tensorflow.io.gfile"),
    ("def f():\n  import torch", "torch"),
    ("import pickle", "pickle"),
    ("from pickle import loads", "pickle.loads"),
    ("eval('1')", "eval"),
    ("f = exec", "exec"),
    ("__import__('os')", "__import__"),
    ("import builtins as b\nb.eval('1')", "builtins.eval"),
    ("import os\nos.system('ls')", "os.system"),
    ("import os as o\no.system('ls')", "os.system"),
    ("from os import system as f\nf('ls')", "os.system"),
    ("import subprocess\nsubprocess.run('ls', shell=True)", "shell"),
    ("import subprocess\nsubprocess.run('ls', shell=flag)", "shell"),
    ("import yaml\nyaml.load(text)", "yaml.load"),
    ("from yaml import load\nload(text)", "yaml.load"),
    ("np.load(path, allow_pickle=True)", "allow_pickle"),
])
def test_a_planted_danger_is_found(source, found):
  assert list(_dangers(source)) == [found]


def test_only_a_rival_of_the_bench_may_load_torch_and_only_when_it_runs():
  rival = pathlib.PurePath("pallas_kernels/peers/fla_times.py")
  assert not list(_dangers("def main():\n  import torch", rival))
  assert list(_dangers("import torch", rival)) == ["torch"]
  assert list(_dangers("def main():\n  import tensorflow", rival)) == ["tensorflow"]


def test_words_in_strings_comments_and_methods_are_no_dangers():
  assert not list(_dangers('''
"""eval, exec, os.system, shell=True, import pickle, yaml.load"""
import tensorflow_datasets as tfds  # not import tensorflow
model.eval(), jax.jit(f).lower().compile(), yaml.safe_load("allow_pickle=True")
subprocess.run(["ls"], shell=False), np.load(path, allow_pickle=False)
'''))


_PROBE = """
import importlib, sys
experiments, floors = (names.split() for names in sys.argv[1:])
for name in experiments:
  importlib.import_module(name)
assert not {"jax", "tensorflow", "torch"} & set(sys.modules), "an experiment loads jax"
for name in floors:
  importlib.import_module(name)
  # The public call for this would itself start the backend.
  from jax._src import xla_bridge
  assert not xla_bridge.backends_are_initialized(), f"{name} starts a backend"
assert not {"tensorflow", "torch"} & set(sys.modules), "a layer loads another framework"
import jax
jax.devices()
assert xla_bridge.backends_are_initialized(), "the sign of a backend does not show"
"""


def test_importing_starts_no_backend_and_experiments_load_without_jax():
  modules = {floor: " ".join(".".join(path.with_suffix("").parts).removesuffix(".__init__")
                             for path in SOURCES
                             if path.parts[0] == floor and path.stem != "__main__")
             for floor in FLOORS}
  done = subprocess.run(
      [sys.executable, "-c", _PROBE, modules["experiments"],
       f"{modules['pallas_kernels']} {modules['layers']}"],
      cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
      capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
