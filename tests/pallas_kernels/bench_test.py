"""The bench measures what it says, on sizes that cost nothing."""

import json

import numpy as np
import pytest

from pallas_kernels import bench
from pallas_kernels.chunk_recurrence import shapes


@pytest.fixture(scope="module")
def rows():
  tiny = [shapes.Shape(1, T, 1, 8, "float32") for T in (16, 32)]
  return [bench.compare(shape, "scalar", True, backward=True, repeats=1) for shape in tiny]


def test_every_rival_is_timed_and_divided_by_the_best_kernel(rows):
  for row in rows:
    assert set(row["ms"]) == {"xla", "reference", "softmax"} and row["best"] == "xla"
    for name, ratio in row["ratio"].items():
      assert ratio == pytest.approx(row["ms"][name] / row["ms"]["xla"])
    assert all(size > 4 * 4 * row["T"] * 8 for size in row["memory"].values())


def test_the_exponent_of_linear_time_is_one():
  rows = [dict(T=T, ms=dict(xla=0.5 * T)) for T in (1, 2, 4, 8)]
  assert bench.growth(rows, "xla") == pytest.approx(1.0)


def test_the_crossover_is_drawn(rows, tmp_path):
  bench.plot(rows, tmp_path / "crossover.png")
  assert (tmp_path / "crossover.png").read_bytes().startswith(b"\x89PNG")


def test_scan_rivals_are_timed():
  row = bench.compare_scan(1, 16, 4, repeats=1)
  assert set(row["ratio"]) == {"associative_scan", "reference"}


def test_a_wrong_kernel_fails_the_check(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(bench, "check", lambda tokens: [dict(
      backend="xla", decay="none", delta=False, T=100, dtype="float32", o=0.5, gradients=0.0, ok=False)])
  assert bench.main(["--json", str(tmp_path / "report.json")]) == 1
  assert "OUT OF BOUNDS" in capsys.readouterr().out
  report = json.loads((tmp_path / "report.json").read_text())
  assert "timings" not in report and not report["check"][0]["ok"]


def test_the_check_finds_the_kernels_within_bounds():
  row, other = bench.check(rules=(("scalar", False),), tokens=(20,))
  assert row["ok"] and other["ok"]
  assert 0 < row["o"] < other["o"] and np.isfinite(other["gradients"])
