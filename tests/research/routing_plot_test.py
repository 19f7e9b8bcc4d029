"""Figures of routing: which layers are drawn, where each byte of a text stands, and that files appear."""

import numpy as np
import pytest

from research import routing_plot

PNG = b"\x89PNG\r\n\x1a\n"
DATA = b"if x:\n  $y$ = \xc3\xa9\t1\n"


def _record(step, layers, experts=3):
  """Returns a line as routing.jsonl holds it after reading."""
  draw = np.random.default_rng(step)
  share = lambda: draw.dirichlet(np.ones(experts)).tolist()
  numbers = lambda: draw.uniform(0, 1, layers).tolist()
  return {"step": step, "layers": [f"{i} channel" for i in range(layers)], "load": [share() for _ in range(layers)],
          "max_violation": numbers(), "entropy": numbers(), "dropped": [float("nan")] * layers,
          "classes": [[share() for _ in range(4)] + [[float("nan")] * experts] for _ in range(layers)]}


@pytest.mark.parametrize("count, places", [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (7, [0, 2, 4, 6])])
def test_at_most_four_layers_are_drawn_the_first_and_the_last_among_them(count, places):
  assert routing_plot.chosen([f"{i}" for i in range(count)]) == places


def test_a_text_breaks_at_its_own_line_breaks_and_at_the_margin():
  placed = routing_plot.cells(b"ab\ncdef\xff", columns=3)
  assert placed == [(0, 0, "a"), (0, 1, "b"), (0, 2, "\u21b5"), (1, 0, "c"), (1, 1, "d"), (1, 2, "e"), (2, 0, "f"),
                    (2, 1, "\u00b7")]


def test_figures_are_of_what_the_records_have(tmp_path):
  routers = [_record(step, 2) for step in (10, 20)]
  policy = [{"step": 20, "applied": [1 + i % 3 for i in range(len(DATA))], "bytes": [*DATA]}]
  for name, records, files in [("routers", routers, ["routing.png"]), ("policy", policy, ["recursions.png"]),
                               ("nothing", [], [])]:
    drawn = routing_plot.figures(records, tmp_path / name, title=name)
    assert drawn == [tmp_path / name / file for file in files]
    assert all(path.read_bytes().startswith(PNG) for path in drawn)
