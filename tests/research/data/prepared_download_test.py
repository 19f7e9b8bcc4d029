"""A data set that is fetched on request, and what is said where that fails."""

import pytest

from research.data import prepared


def test_a_failed_download_is_one_line_with_the_reason(tmp_path):
  with pytest.raises(ValueError, match=r"^dataset='no_such_set' could not be prepared in .*NotFound.*data_dir") as error:
    prepared.open_prepared("no_such_set", str(tmp_path), download=True)
  assert "\n" not in str(error.value)


def test_nothing_is_fetched_unasked(tmp_path):
  with pytest.raises(ValueError, match="download=true"):
    prepared.open_prepared("no_such_set", str(tmp_path))
