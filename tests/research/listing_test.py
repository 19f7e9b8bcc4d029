"""What `--list` and `--describe` say comes from the experiment files alone."""

import json

import pytest

from research import config as configs
from research import find, listing, run


def test_every_experiment_is_listed_with_its_question_and_a_cost_for_each_preset():
  records = json.loads(listing.as_json())
  assert [r["experiment"] for r in records] == configs.experiment_names()
  for record in records:
    assert record["question"].endswith("?")
    presets = configs.load_file(record["experiment"]).PRESETS
    assert tuple(record["presets"]) == presets
    # Whoever adds a preset measures it, or says that nobody has.
    assert all(record["presets"].values())


def test_the_page_names_every_experiment(capsys):
  assert run.main(["--list"]) == 0
  page = capsys.readouterr().out
  assert all(name in page for name in configs.experiment_names())


def test_a_description_holds_the_docstring(capsys):
  assert run.main(["--describe", "--config=recall"]) == 0
  assert "associative recall" in capsys.readouterr().out


@pytest.mark.parametrize("kind", listing.KINDS)
def test_every_layer_is_listed_by_its_paper(kind):
  found = dict(listing.layers(kind))
  assert set(found) == set(find.names(kind))
  assert [name for name, papers in found.items() if not papers] == []


def test_papers_are_those_of_the_reference_paragraph():
  page = listing.as_text()
  assert "gla.GLA: Gated Linear Attention Transformers with Hardware-Efficient Training (2024)" in page
  assert "norm_attention.NormAttention: The Devil in Linear Transformer (2022)" in page
