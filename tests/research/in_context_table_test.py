"""The table's rows where they can be known otherwise, and its refusals."""

import math

import pytest

from research import exit_codes, in_context_table


def _rows(*args):
  return {name: (formula, estimate) for name, formula, estimate in in_context_table.rows(*args)}


@pytest.mark.parametrize("n, d, noise, coordinates", [(12, 5, 0.3, "normal"), (6, 8, 0.0, "normal"), (10, 10, 0.0, "uniform")])
def test_draws_agree_with_the_formulas_beside_them(n, d, noise, coordinates):
  found = _rows(n, d, noise, 4000, coordinates)
  known = {name: pair for name, pair in found.items() if pair[0] is not None}
  assert len(known) >= 2
  for formula, estimate in known.values():
    assert abs(estimate.mean - formula) <= 4.5 * estimate.standard_error + 1e-12


def test_rows_have_the_values_of_the_recursions_of_von_oswald():
  found = _rows(10, 10, 0.0, 4000, "uniform")
  for name, want in (("2 steps, best rate", 0.3136), ("GD++, 2 layers, best", 0.2212), ("GD++, 5 layers, best", 0.1039)):
    assert found[name][1].mean == pytest.approx(want, rel=0.02)


def test_an_infinite_risk_is_printed_as_one():
  rows = in_context_table.rows(5, 5, 0.5, 200)
  assert dict((name, estimate.mean) for name, _, estimate in rows)["least squares"] == math.inf
  assert " inf " in in_context_table.as_text(rows).splitlines()[-2]


@pytest.mark.parametrize("flags, match", [
    (["--d=0"], "n=20 pairs and d=0 inputs"), (["--noise=-1"], "noise=-1.0 must be a variance"),
    (["--prompts=1"], "prompts=1 must be at least 2"), (["--dims=3"], "unrecognized arguments: --dims=3"),
    (["--seeds=-1"], "--seeds=-1 must be at least 0")])
def test_what_is_no_table_is_refused_in_one_line(flags, match, capsys):
  assert in_context_table.main(flags) == exit_codes.CONFIG
  error = capsys.readouterr().err
  assert match in error and error.count("\n") == 1
