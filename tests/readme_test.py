"""The README keeps its word: its commands are those of CI, and each of them builds."""

import pathlib
import re
import shlex
import textwrap

import pytest

from layers.placement import TABLE
from research import arms, build, find, flags, grid, run, sweep
from research import config as configs
from research import optim

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [line.split("#")[0].strip() for line in re.findall(r"^    (.+)$", README, re.MULTILINE)]
RUNS = [c for c in COMMANDS if c.startswith("python -m research.run")]


def test_ci_runs_the_test_command_of_the_readme():
  command, = [c for c in COMMANDS if "pytest -n" in c]
  assert command in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_every_placement_is_in_the_table_of_the_readme():
  listed = re.findall(r"^\| `([a-z_]+)`", README, re.MULTILINE)
  assert sorted(listed) == sorted(TABLE)


def test_every_mixer_is_named_in_the_readme():
  assert {name for name in find.names("mixer") if f"`{name}`" not in README} == set()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m research.sweep")])
def test_every_sweep_of_the_readme_has_arms(command):
  given, common = flags.parse(sweep.parser(), shlex.split(command)[3:])
  wanted = arms.named(grid.parse(given.vary)) if given.vary else arms.of_experiment(given.config)
  assert len(arms.make(given.config, common, wanted)) > 1


def test_the_claim_of_the_readme_can_be_added_to_any_experiment_file(tmp_path):
  text = README[README.index("    from research.claims import Claim"):README.index("[research/results]")]
  assert len([line for line in text.splitlines() if line.strip()]) < 10
  file = tmp_path / "mine.py"
  file.write_text((ROOT / "experiments" / "recall.py").read_text("utf-8") + "\n\n" + textwrap.dedent(text))
  claim, = arms.claims_of(str(file))
  assert claim.needs == ("pre", "post") and arms.make(str(file), {}, arms.of_experiment(str(file)))


@pytest.mark.parametrize("command", RUNS)
def test_every_command_of_the_readme_resolves(command, tmp_path):
  given, overrides = flags.parse(run.parser(), shlex.split(command)[3:])
  _, _, config = configs.load(given.config)
  configs.override(config, overrides)
  if given.seeds:
    flags.seeds_of(given.seeds)
  # Folders and downloads are examples; the model does not depend on which text it is.
  if config.task.name == "text.Bytes":
    config.task.path, config.task.dataset = "", "stdlib"
  build.model_of(config, build.task_of(config), train=True)
  optim.optimizer_of(config.optim)
