"""What a frontier joins, what its table holds, and who gets one."""

import csv
import types

import pytest

from research import frontier


def test_the_staircase_is_what_no_cheaper_arm_beats():
  points = {"dear": (9.0, 0.5), "cheap": (1.0, 0.3), "dominated": (4.0, 0.2), "tied": (1.0, 0.25), "middle": (3.0, 0.4)}
  assert frontier.staircase(points, "higher") == ["cheap", "middle", "dear"]
  assert frontier.staircase(points, "lower") == ["tied", "dominated"]


def test_the_table_has_every_arm_with_its_interval_and_its_costs(tmp_path):
  values = {"a": {"eval/accuracy": {0: 0.5, 1: 0.7}, "count/state_bytes": {0: 64.0, 1: 64.0}},
            "b": {"eval/accuracy": {0: 0.9}, "count/state_bytes": {0: 1024.0}, "decode/ms": {0: 0.25}},
            "without": {}}
  frontier.figure(values, tmp_path / "f.png", metric="eval/accuracy", costs=("count/state_bytes", "decode/ms"))
  a, b, without = csv.DictReader((tmp_path / "f.csv").read_text().splitlines())
  # The t interval of two values: their mean and 12.706 standard errors.
  assert [float(a[k]) for k in ("eval/accuracy", "low", "high")] == pytest.approx([0.6, -0.6706, 1.8706], abs=1e-4)
  assert (a["count/state_bytes"], a["decode/ms"]) == ("64.0", "nan")
  assert (b["seeds"], b["low"], b["count/state_bytes"], b["decode/ms"]) == ("1", "", "1024.0", "0.25")
  assert (without["seeds"], without["eval/accuracy"]) == ("0", "nan")
  assert (tmp_path / "f.png").stat().st_size > 5000


@pytest.mark.parametrize("spec, drawn", [("controls", []), ("zoology:cpu", ["frontier-eval-accuracy.png"])])
def test_a_frontier_is_drawn_where_the_experiment_asks_for_it(tmp_path, spec, drawn, monkeypatch):
  monkeypatch.setattr(frontier, "figure", lambda values, path, *, metric, costs: None)
  asked = types.SimpleNamespace(spec=spec, directory=tmp_path)
  assert [path.name for path in frontier.draw(asked, types.SimpleNamespace(values={}))] == drawn
