"""A claim is refused before anything runs if it could not be judged afterwards."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

from research import arms
from research import claims
from research import config as configs
from research.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
ARMS = {"pre": {}, "post": {"model.placement": "post"}, "peri": {"model.placement": "peri"}}


def claim(**changes):
  """Returns a difference that can be judged, but for the changes."""
  return claims.Claim(**(dict(id="c", paper="p", year=2020, statement="s", metric="eval/loss", better="lower",
                              arm="pre", against="post", margin="0.05 nats") | changes))


def threshold(**changes):
  return claim(**(dict(kind="threshold", against="", margin="", bound="0.9 accuracy", better="higher") | changes))


def series(**changes):
  return claim(**(dict(kind="monotone", arm="", against="", arms=("pre", "post", "peri")) | changes))


def ratio(**changes):
  return claim(**(dict(kind="ratio", margin="", bound="2 times") | changes))


def slope(**changes):
  return ratio(**(dict(arm="", against="", arms=("pre", "post"), scale=(1.0, 2.0), bound="0.5 slope") | changes))


@pytest.mark.parametrize("good", [
    claim(), claim(better="equal"), claim(margin="0 nats"), claim(margin="2 %"), claim(match="flops"), claim(seeds=2),
    threshold(), threshold(seeds=1), threshold(bound="-3 nats"), series(), series(arms=("pre", "post")), ratio(),
    slope(), slope(bound="-0.5 slope"), claim(kind="exact", margin="", bound="0 nats", seeds=1),
    claim(kind="exact", against="", margin="", bound="1e-6 nats"), ratio(metric="count/parameters", seeds=1)])
def test_a_claim_that_can_be_judged_passes(good):
  claims.check([good], ARMS)
  assert set(good.needs) <= set(ARMS)


@pytest.mark.parametrize("bad, says", [
    (claim(id="two words"), "the id must be new"), (claim(id="../up"), "the id must be new"),
    (claim(kind="diference"), "did you mean 'difference'?"), (claim(better="lowest"), "did you mean 'lower'?"),
    (claim(match="parameter"), "did you mean 'parameters'?"), (claim(arm="prae"), "did you mean 'pre'?"),
    (claim(against="past"), "did you mean 'post'?"), (series(arms=("pre", "perri")), "did you mean 'peri'?"),
    (claim(seeds=1), "seeds=1 must be at least 2"), (series(seeds=1), "seeds=1 must be at least 2"),
    (ratio(seeds=1), "seeds=1 must be at least 2"), (slope(seeds=1), "seeds=1 must be at least 2"),
    (threshold(seeds=0), "seeds=0 must be at least 1"),
    (claim(margin=""), "margin=''"), (claim(margin="0.05"), "a number and its unit"),
    (claim(margin="-0.1 nats"), "must be at least 0"), (series(margin="-1 %"), "must be at least 0"),
    (claim(kind="exact", margin="", bound="-1 nats"), "must be at least 0"),
    (claim(bound="1 nats"), "takes margin, not bound"), (threshold(margin="1 nats"), "takes bound, not margin"),
    (threshold(bound=""), "bound=''"), (threshold(better="equal"), "an identity is kind='exact'"),
    (threshold(against="post"), "leave out against"), (claim(arm=""), "takes arm, not arms"),
    (claim(against=""), "set against"), (ratio(against=""), "set against"),
    (claim(arms=("pre", "post")), "takes arm, not arms"), (series(arms=("pre",)), "two or more"),
    (series(arm="pre"), "neither arm nor against"), (slope(against="post"), "neither arm nor against"),
    (slope(scale=()), "a slope takes scale"), (slope(scale=(1.0,)), "a slope takes scale"),
    (slope(scale=(0.0, 1.0)), "a slope takes scale"), (slope(scale=(2.0, 2.0)), "not all the same"),
    (slope(scale=(1.0, float("nan"))), "a slope takes scale"), (claim(scale=(1.0, 2.0)), "scale is of a slope"),
    (threshold(bound="2 %"), "in the metric's own unit"), (ratio(bound="0 times"), "must be above 0"), (ratio(bound="-1 times"), "must be above 0"),
    (claim(against="pre"), "not compared with itself"), (series(arms=("pre", "pre")), "not compared with itself")])
def test_a_claim_that_could_not_be_judged_is_one_line(bad, says):
  with pytest.raises(ConfigError) as refused:
    claims.check([bad], ARMS)
  text = str(refused.value)
  assert says in text and text.startswith(f"claim {bad.id}:") and "\n" not in text


def test_an_id_stands_for_one_claim():
  with pytest.raises(ConfigError, match="claim c: the id must be new"):
    claims.check([claim(), claim(better="higher")], ARMS)


@pytest.mark.parametrize("text, value, unit", [
    ("0.05 nats", 0.05, "nats"), ("2 %", 2.0, "%"), ("2%", 2.0, "%"), (" 1e-3 nats per byte ", 1e-3, "nats per byte"),
    ("-1.5e+2 ms", -150.0, "ms"), ("3.slope", 3.0, "slope"), (".5 accuracy", 0.5, "accuracy"), ("1 e", 1.0, "e")])
def test_a_quantity_is_a_number_and_its_unit(text, value, unit):
  assert claims.quantity(text, "margin", "c") == (value, unit)


@pytest.mark.parametrize("text", ["", "nats", "0.05", "1e-3", "1e5", "5e", "1.2.3 nats", "nan nats",
                                  "inf nats", "1e999 nats", "1 2", "--1 nats", "1 a\nb", 0.05, None, "1 " + "u" * 40])
def test_anything_else_is_no_quantity(text):
  with pytest.raises(ConfigError, match="claim c: margin=.* must be a number and its unit"):
    claims.quantity(text, "margin", "c")


def test_a_claim_does_not_change():
  with pytest.raises(dataclasses.FrozenInstanceError):
    claim().margin = "0 nats"


def test_the_claims_of_every_experiment_can_be_judged():
  assert {c.id for c in arms.claims_of("controls")} == {"training_does_not_help", "two_seeds_are_enough"}
  for name in configs.experiment_names():
    for found in arms.claims_of(name):
      assert set(found.needs) <= set(arms.of_experiment(name)), name


@pytest.mark.parametrize("name", [name for name in configs.experiment_names() if hasattr(configs.module_of(name), "arms")])
def test_a_sweep_over_the_arms_of_any_experiment_can_begin(name):
  preset = configs.load_file(name).PRESETS[0]
  assert len(arms.make(f"{name}:{preset}", {}, arms.of_experiment(name))) == len(arms.of_experiment(name))


def test_an_experiment_without_arms_has_no_claims_and_is_named_when_arms_are_wanted():
  assert arms.claims_of("byte_lm") == []
  with pytest.raises(ConfigError, match=r"byte_lm has no arms\(\)"):
    arms.of_experiment("byte_lm")


def test_claims_are_read_without_jax():
  program = ("import sys; from research import arms, claims\n"
             "for name in ('controls', 'byte_lm'): arms.claims_of(name)\n"
             "arms.claims_of('experiments/controls.py')\n"
             "sys.exit('jax' in sys.modules or 'scipy' in sys.modules or 'optax' in sys.modules)")
  assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)),
                        timeout=60).returncode == 0
