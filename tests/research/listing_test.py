"""What `--list` and `--describe` say comes from the experiment files alone."""

import json

from research import config as configs
from research import listing, run


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
