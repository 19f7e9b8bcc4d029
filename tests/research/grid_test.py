"""The algebra of --vary: product, zip and chain, and what is not of the grammar."""

import itertools

import numpy as np
import pytest

from research import arms
from research import grid
from research.errors import ConfigError


def _parts(draw, count):
  """Returns lists of arms over keys of their own, one to four values each."""
  return [grid.values(f"section.key_{n}", [str(v) for v in range(draw.integers(1, 5))]) for n in range(count)]


DRAWS = [np.random.default_rng(seed) for seed in range(20)]


def test_a_product_is_every_combination_once():
  for draw in DRAWS:
    parts = _parts(draw, 3)
    found = grid.product(*parts)
    assert len(found) == len({tuple(arm.items()) for arm in found}) == np.prod([len(part) for part in parts])
    assert found == [{**a, **b, **c} for a, b, c in itertools.product(*parts)]  # the last varies fastest


def test_products_and_zips_and_chains_are_associative():
  for draw in DRAWS:
    a, b, c = _parts(draw, 3)
    assert grid.product(a, grid.product(b, c)) == grid.product(grid.product(a, b), c) == grid.product(a, b, c)
    assert grid.chain(a, grid.chain(b, c)) == grid.chain(grid.chain(a, b), c) == grid.chain(a, b, c)
    a, b, c = (part[:1] * 3 for part in (a, b, c))
    assert grid.zipped(a, grid.zipped(b, c)) == grid.zipped(grid.zipped(a, b), c) == grid.zipped(a, b, c)


def test_a_product_spreads_over_a_chain():
  for draw in DRAWS:
    a, b, c = _parts(draw, 3)
    assert grid.product(grid.chain(a, b), c) == grid.chain(grid.product(a, c), grid.product(b, c))


def test_a_chain_holds_every_arm_once_in_the_order_of_its_coming():
  for draw in DRAWS:
    a, b = _parts(draw, 2)
    assert grid.chain(a, b, a) == grid.chain(a, b) == [*a, *b]
    assert grid.chain(*[grid.chain(a, b)] * 2) == grid.chain(a, b)


def test_one_factor_is_neutral():
  part, = _parts(np.random.default_rng(0), 1)
  assert grid.product(part) == grid.zipped(part) == grid.chain(part) == part
  assert grid.product(part, [{}]) == part == grid.product([{}], part)


@pytest.mark.parametrize("texts, arms", [
    (["a.b=1,2"], [{"a.b": "1"}, {"a.b": "2"}]),
    (["a.b=1,2;c=x,y"], [{"a.b": "1", "c": "x"}, {"a.b": "1", "c": "y"}, {"a.b": "2", "c": "x"}, {"a.b": "2", "c": "y"}]),
    (["a.b=1,2|c=x,y"], [{"a.b": "1", "c": "x"}, {"a.b": "2", "c": "y"}]),
    (["a=1,2|b=3,4;c=5,6"], [{"a": a, "b": b, "c": c} for a, b in ("13", "24") for c in "56"]),
    (["c=5,6;a=1,2|b=3,4"], [{"c": c, "a": a, "b": b} for c in "56" for a, b in ("13", "24")]),
    (["a=1", "b=2"], [{"a": "1"}, {"b": "2"}]),
    (["a=1,2", "a=2,3"], [{"a": "1"}, {"a": "2"}, {"a": "3"}]),
    (["config.optim.lr=1e-3"], [{"optim.lr": "1e-3"}]),
    ([" a = 1".replace(" =", "=")], [{"a": "1"}]),
    (["model.pattern=(gla,attention),(gla)"], [{"model.pattern": "gla,attention"}, {"model.pattern": "gla"}]),
    (["p=(a,b),c"], [{"p": "a,b"}, {"p": "c"}]),
    (["model.mixer.name=gla.GLA,mamba2.Mamba2"],
     [{"model.mixer.name": "gla.GLA"}, {"model.mixer.name": "mamba2.Mamba2"}]),
    (["a=-1, 2.5"], [{"a": "-1"}, {"a": "2.5"}])])
def test_the_text_means(texts, arms):
  assert grid.parse(texts) == arms


@pytest.mark.parametrize("text, says", [
    ("", "KEY=VALUE,VALUE"), ("a", "KEY=VALUE,VALUE"), ("a=", "KEY=VALUE,VALUE"), ("=1", "KEY=VALUE,VALUE"),
    ("a=1,,2", "KEY=VALUE,VALUE"), ("a=1,", "KEY=VALUE,VALUE"), ("a=1;", "KEY=VALUE,VALUE"), ("a=1;;b=2", "KEY=VALUE"),
    ("a=(1,2", "KEY=VALUE,VALUE"), ("a=1)", "KEY=VALUE,VALUE"), ("a=((1),2)", "KEY=VALUE,VALUE"),
    ("a=f(1)", "KEY=VALUE,VALUE"), ("a b=1", "KEY=VALUE,VALUE"), ("1a=1", "KEY=VALUE,VALUE"),
    ("a=1,2|b=1", "2 and 1 values side by side"), ("a=1|b=1,2,3", "1 and 3 values side by side"),
    ("a=1;a=2", "sets a twice in one arm, to '1' and '2'"), ("a=1,2|a=1,3", "sets a twice in one arm, to '2' and '3'")])
def test_what_is_not_of_the_grammar_is_one_line(text, says):
  with pytest.raises(ConfigError) as refused:
    grid.parse([text])
  assert says in str(refused.value) and "\n" not in str(refused.value) and str(refused.value).startswith("--vary")


def test_every_arm_has_a_name_of_its_own_that_a_folder_can_have():
  texts = ["model.width=16,32;optim.lr=1e-3,3e-3", "model.pattern=(gla,attention),(gla;x)".replace(";", "."),
           "a.b=x/y,x-y", f"a.b={'w' * 90},{'w' * 91}"]
  varied = grid.parse(texts)
  named = arms.named(varied)
  assert list(named.values()) == varied and len(named) == len(varied)
  assert all(len(name) <= 100 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") for name in named)
  assert arms.named(grid.parse(["model.width=16,32"])).keys() == {"width-16", "width-32"}
  assert arms.named(grid.parse(["a.name=x;b.name=y"])).keys() == {"a-name-x_b-name-y"}
