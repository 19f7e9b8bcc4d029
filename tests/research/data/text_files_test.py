"""Which files are text, who is held out, and what is written of them."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from research.data import stdlib_text
from research.data import text as text_data
from research.data import text_files

pytestmark = pytest.mark.usefixtures("own_cache")


def _pieces(n, size=100):
  return [text_files.Piece(f"file_{i}.txt", f"/x/file_{i}.txt", 0, size) for i in range(n)]


def _texts(records):
  return [records.read(r).tobytes() for r in range(records.count)]


def test_every_file_is_on_one_side_and_about_a_twentieth_is_held_out():
  splits = text_files.split(_pieces(4000))
  train, validation = ({p.path for p in splits[s]} for s in ("train", "validation"))
  assert not train & validation and len(train | validation) == 4000
  assert 150 < len(validation) < 250


def test_a_file_keeps_its_side_when_others_come():
  few, many = (set(text_files.split(_pieces(n))["validation"]) for n in (1000, 1100))
  assert few <= many


def test_a_file_that_would_be_most_of_validation_is_for_training():
  path = next(p.path for p in text_files.split(_pieces(500))["validation"])
  grown = [p if p.path != path else text_files.Piece(path, p.file, 0, 5000) for p in _pieces(500)]
  assert path in {p.path for p in text_files.split(grown)["train"]}


@pytest.mark.parametrize("n", [2, 3, 10])
def test_a_handful_of_files_still_has_both_sides(n):
  splits = text_files.split(_pieces(n))
  assert len(splits["validation"]) == 1 and len(splits["train"]) == n - 1


@pytest.mark.parametrize("size", [40, 1000, 3_000_017])
def test_a_lone_file_is_cut_by_position_without_loss(size):
  splits = text_files.split(_pieces(1, size))
  chunks = sorted(splits["train"] + splits["validation"], key=lambda p: p.start)
  assert chunks[0].start == 0 and chunks[-1].start + chunks[-1].size == size
  assert all(a.start + a.size == b.start for a, b in zip(chunks, chunks[1:]))
  assert abs(sum(p.size for p in splits["validation"]) / size - 0.05) < 0.03


def test_hidden_binary_and_empty_files_are_not_text(folder):
  (folder / ".git").mkdir()
  (folder / ".git" / "config").write_text("hidden folder")
  (folder / ".hidden").write_text("hidden file")
  (folder / "empty.txt").write_text("")
  (folder / "picture.png").write_bytes(b"\x89PNG\0\0 binary")
  (folder / "nowhere").symlink_to(folder / "missing")
  data = text_data.open_text(path=str(folder))
  assert data.train.count + data.validation.count == 60
  assert not any(b"hidden" in t or b"binary" in t for t in _texts(data.train) + _texts(data.validation))


def test_records_are_the_files(folder):
  data = text_data.open_text(path=str(folder))
  files = sorted(f.read_bytes() for f in folder.rglob("*.txt"))
  assert sorted(_texts(data.train) + _texts(data.validation)) == files
  assert [len(t) for t in _texts(data.train)] == list(data.train.lengths_R)


def test_a_changed_folder_is_read_anew_and_an_unchanged_one_is_not(folder, own_cache):
  first = text_data.open_text(path=str(folder)).identity
  assert text_data.open_text(path=str(folder)).identity == first and len(list(own_cache.iterdir())) == 1
  (folder / "more.txt").write_text("more text")
  assert text_data.open_text(path=str(folder)).identity != first and len(list(own_cache.iterdir())) == 2


def test_a_damaged_cache_is_refused_with_the_way_out(folder, own_cache):
  text_data.open_text(path=str(folder))
  at = next(own_cache.rglob("content.json"))
  content = json.loads(at.read_text())
  content["sha256"]["train"] = "0" * 64
  at.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="delete that folder"):
    text_data.open_text(path=str(folder))


def test_two_processes_building_one_folder_read_the_same(folder, own_cache):
  script = ("import sys; from research.data.text import open_text; "
            "print(open_text(path=sys.argv[1]).identity['sha256'])")
  root = os.path.dirname(os.path.dirname(os.path.dirname(text_data.__file__)))
  running = [subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE,
                              text=True, cwd=root) for _ in range(2)]
  said = {process.communicate()[0] for process in running}
  assert said == {f"{text_data.open_text(path=str(folder)).identity['sha256']}\n"}
  assert len(list(own_cache.iterdir())) == 1


@pytest.mark.parametrize("make, match", [
    (lambda at: None, "is not there"),
    (lambda at: at.mkdir(), "has no files"),
    (lambda at: (at.mkdir(), (at / "a").write_text("x")), "fewer than 40 bytes"),
    (lambda at: (at.mkdir(), (at / "a").write_bytes(b"\0" * 99)), "0 text files"),
], ids=["missing", "empty", "short", "binary"])
def test_a_folder_without_text_is_refused_by_name(tmp_path, own_cache, make, match):
  make(tmp_path / "none")
  with pytest.raises(ValueError, match=f"^path='.*none.*{match}"):
    text_data.open_text(path=str(tmp_path / "none"))


def test_the_standard_library_is_built_in_seconds_and_holds_its_own_modules():
  start = time.perf_counter()
  data = text_data.open_text("stdlib")
  assert time.perf_counter() - start < 20  # measured 0.6 s alone; the machine may be busy
  texts = _texts(data.train) + _texts(data.validation)
  with open(os.__file__, "rb") as f:
    assert f.read() in texts
  assert sum(map(len, texts)) > 5e6
  version = "".join(c if c.isalnum() else "_" for c in stdlib_text.version())
  assert data.identity["dataset"] == f"stdlib_{version}"
  for text in texts[:50]:
    text.decode("utf-8")
  assert 0.02 < data.validation.lengths_R.sum() / np.sum([len(t) for t in texts]) < 0.1
