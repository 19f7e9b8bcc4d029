"""What a frontier joins, what its table holds, and who gets one."""

import csv
import math
import struct
import types

import pytest

from research import compare, frontier, panels


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


def test_a_cost_of_which_more_is_wanted_falls_from_left_to_right():
  from matplotlib.figure import Figure
  points, order = {"fast": (9e4, 2.0), "slow": (1e4, 1.5), "beaten": (2e4, 2.1)}, ["fast", "slow", "beaten"]
  axes = Figure().subplots()
  frontier.panel(axes, points, {}, order, "lower", falls=True)
  left, right = axes.get_xlim()
  assert left > right
  assert axes.lines[0].get_xydata().tolist() == [[9e4, 2.0], [1e4, 1.5]]


def test_many_arms_are_rows_from_best_to_worst_and_full_where_none_is_better_for_less():
  values = {"b": (2.0, 9.0), "lost": (math.nan, 1.0), "a": (1.0, 20.0), "unpaid": (3.0, math.nan), "c": (4.0, 12.0)}
  means = compare.means({arm: {0: loss, 1: loss} for arm, (loss, _) in values.items()})
  points = {"decode/ms": {arm: (cost, loss) for arm, (loss, cost) in values.items() if math.isfinite(loss + cost)}}
  loss, cost = frontier.rows(list(values), means, points, "eval/loss").axes
  assert [label.get_text() for label in loss.get_yticklabels()] == ["a", "b", "unpaid", "c"]
  at = {line.get_ydata()[0]: line for line in cost.lines}
  assert {row: line.get_xdata()[0] for row, line in at.items()} == {0: 20.0, 1: 9.0, 3: 12.0}
  full = [row for row, line in at.items() if line.get_markerfacecolor() == line.get_color()]
  assert sorted(full) == [0, 1]


def test_a_legend_is_for_few_arms_only(tmp_path):
  for count, height in ((frontier.MANY, 662), (frontier.MANY + 9, 857)):
    values = {f"arm{i}": {"eval/loss": {0: float(i)}, "decode/ms": {0: 1.0 + i}} for i in range(count)}
    frontier.figure(values, tmp_path / "f.png", metric="eval/loss", costs=("decode/ms",))
    assert struct.unpack(">I", (tmp_path / "f.png").read_bytes()[20:24])[0] == pytest.approx(height, abs=2)
    assert len((tmp_path / "f.csv").read_text().splitlines()) == 1 + count


@pytest.mark.parametrize("number, text", [(0.05, "0.05"), (700, "700"), (5000, "5000"), (20000, "20k"), (2e6, "2M"), (-3e4, "-30k")])
def test_ticks_are_plain_numbers(number, text):
  assert panels.number(number) == text


@pytest.mark.parametrize("spec, drawn", [("controls", []), ("zoology:cpu", ["frontier-eval-accuracy.png"])])
def test_a_frontier_is_drawn_where_the_experiment_asks_for_it(tmp_path, spec, drawn, monkeypatch):
  monkeypatch.setattr(frontier, "figure", lambda values, path, *, metric, costs: None)
  asked = types.SimpleNamespace(spec=spec, directory=tmp_path)
  assert [path.name for path in frontier.draw(asked, types.SimpleNamespace(values={}))] == drawn
