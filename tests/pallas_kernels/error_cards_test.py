"""The error cards stay within their bounds, for every backend that runs here."""

import pytest

from pallas_kernels import error_cards

BACKENDS = ["xla"]

# Every adversarial case once, mostly for the richest rules; the README has the whole table.
ROWS = [("none", True, "float32", "identical", 512), ("scalar", True, "float32", "correlated", 512),
        ("scalar", True, "float32", "gates at floor", 512), ("vector", True, "float32", "gates at floor", 512),
        ("vector", True, "float32", "hard resets", 512), ("vector", True, "float32", "identical", 512),
        ("vector", True, "bfloat16", "correlated", 512)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS, ids=lambda r: "-".join(map(str, r)).replace(" ", "_"))
def test_errors_stay_within_their_bounds(backend, row):
  decay, delta, dtype, case, T = row
  output, gradients = error_cards.card(*row, backend)
  output_bound, gradient_bound = error_cards.bound(dtype, delta, case)
  assert output <= output_bound and gradients <= gradient_bound, (output, gradients)
  if backend != "xla":
    limits = error_cards.card(*row, "xla")
    assert output <= 1.5 * limits[0] + 1e-6 and gradients <= 1.5 * limits[1] + 1e-6


def test_the_table_has_one_line_per_row():
  rows = [("none", False, "float32", "random", 64, "xla", 1e-7, 2e-7)]
  assert error_cards.table(rows).splitlines()[-1] == (
      "| none | no | float32 | random | 64 | xla | 1.0e-07 | 2.0e-07 |")
