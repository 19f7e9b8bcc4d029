"""Bytes of a folder and of TFDS text sets, by the same path."""

import functools
import pathlib
import shutil
import sys

import numpy as np
import pytest

from research.data import text_files
from research.tasks.text import Bytes

pytestmark = pytest.mark.usefixtures("own_cache")

SENTENCES = [f"Sentence {i} says {'very ' * (i % 5)}little.".encode() for i in range(200)]


@pytest.fixture
def sentences(tmp_path):
  """A prepared TFDS data set of 150 training and 50 test sentences."""
  def records(texts):
    return ((i, {"path": b"", "text": text}) for i, text in enumerate(texts))

  splits = {"train": records(SENTENCES[:150]), "test": records(SENTENCES[150:])}
  text_files.prepare(text_files.builder(splits, tmp_path / "tfds", "tiny_sentences"))
  return str(tmp_path / "tfds")


def test_a_pass_of_validation_scores_every_byte_once(folder):
  task = Bytes(path=str(folder), tokens=16, batch_size=8)
  held_out = text_files.split([text_files.Piece(p, "", 0, n) for p, n, _ in
                               text_files.listing(folder)])["validation"]
  n = task.batches("validation")
  weight = sum(task.batch("validation", i)["weights"].sum() for i in range(n))
  assert weight == sum(p.size - 1 for p in held_out)
  again, first = task.batch("validation", n), task.batch("validation", 0)
  np.testing.assert_array_equal(again["inputs"], first["inputs"])


def test_labels_are_the_bytes_after_the_inputs(folder):
  task = Bytes(path=str(folder), tokens=16, batch_size=8)
  text = [f.read_bytes() for f in folder.rglob("*.txt")]
  for inputs, labels, weights in zip(*task.batch("train", 3).values()):
    n = int(weights.sum())
    window = task.decode(inputs[:n]) + task.decode(labels[n - 1:n])
    assert any(window.encode() in t for t in text)


def test_no_training_row_shows_a_held_out_file(folder):
  task = Bytes(path=str(folder), tokens=32, batch_size=8)
  held_out = [(folder / p.path).read_bytes() for p in text_files.split(
      [text_files.Piece(p, "", 0, n) for p, n, _ in text_files.listing(folder)])["validation"]]
  for step in range(2 * task.batches("train")):
    batch = task.batch("train", step)
    for row, weights in zip(batch["inputs"], batch["weights"]):
      if weights.sum() > 12:  # shorter ones may be found anywhere
        assert not any(bytes(row[:12].astype(np.uint8)) in text for text in held_out)


def test_a_tfds_set_is_read_by_name_with_sentences_packed(sentences):
  task = Bytes(dataset="tiny_sentences", data_dir=sentences, tokens=128, batch_size=4)
  assert task.fingerprint()["records"] == {"train": 150, "validation": 50}
  batch = task.batch("train", 0)
  for inputs, segment in zip(batch["inputs"], batch["segment_ids"]):
    assert segment.max() >= 1
    for s in range(segment.max()):  # all but the last are whole
      assert task.decode(inputs[segment == s]).encode() + b"." in SENTENCES[:150]
  np.testing.assert_array_equal(batch["weights"], batch["segment_ids"] >= 0)


def test_a_pinned_version_is_found_and_another_is_not(sentences):
  assert Bytes(dataset="tiny_sentences:1.0.0", data_dir=sentences, tokens=8).batch("train", 0)
  with pytest.raises(ValueError, match="not prepared in"):
    Bytes(dataset="tiny_sentences:2.0.0", data_dir=sentences, tokens=8).batch("train", 0)


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path):
  with pytest.raises(ValueError, match=r"^dataset='lm1b' is not prepared in '.*tfds'; download=true fetches it, or prepare it with: "
                                       r"python -c .*builder\('lm1b'.*file_format='array_record'"):
    Bytes(dataset="lm1b", data_dir=str(tmp_path / "tfds")).batch("train", 0)


def test_a_set_stored_as_tfrecord_is_refused_with_the_command(sentences):
  info = pathlib.Path(sentences) / "tiny_sentences" / "1.0.0" / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(ValueError, match="stored as tfrecord, which cannot be read without TensorFlow"):
    Bytes(dataset="tiny_sentences", data_dir=sentences).batch("train", 0)


def test_a_data_folder_cannot_have_code_imported(sentences):
  features = pathlib.Path(sentences) / "tiny_sentences" / "1.0.0" / "features.json"
  text = features.read_text()
  assert "tensorflow_datasets.core.features.text_feature.Text" in text
  features.write_text(text.replace("tensorflow_datasets.core.features.text_feature.Text", "antigravity.Text"))
  with pytest.raises(ValueError, match="wants the class 'antigravity.Text'"):
    Bytes(dataset="tiny_sentences", data_dir=sentences).batch("train", 0)
  assert "antigravity" not in sys.modules


def test_a_set_with_a_train_split_alone_holds_out_its_end(tmp_path):
  records = ((i, {"path": b"", "text": text}) for i, text in enumerate(SENTENCES))
  text_files.prepare(text_files.builder({"train": records}, tmp_path, "one_split"))
  task = Bytes(dataset="one_split", data_dir=str(tmp_path), tokens=8)
  assert task.fingerprint()["records"] == {"train": 190, "validation": 10}


def test_the_fingerprint_follows_the_content_and_not_the_place(folder, tmp_path, monkeypatch):
  tiny = functools.partial(Bytes, tokens=16)
  first = tiny(path=str(folder)).fingerprint()
  shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
  monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "elsewhere"))
  assert tiny(path=str(tmp_path / "copy")).fingerprint() == first
  at = folder / "deep" / "file_50.txt"
  at.write_bytes(at.read_bytes()[::-1])
  changed = tiny(path=str(folder)).fingerprint()
  assert changed["bytes"] == first["bytes"] and changed != first  # same lengths, other text
  at.write_bytes(b"shorter")
  assert tiny(path=str(folder)).fingerprint()["bytes"] != first["bytes"]


def test_the_fingerprint_knows_the_version(sentences):
  old = Bytes(dataset="tiny_sentences", data_dir=sentences, tokens=8).fingerprint()
  at = pathlib.Path(sentences) / "tiny_sentences"
  shutil.copytree(at / "1.0.0", at / "1.0.1")
  info = at / "1.0.1" / "dataset_info.json"
  info.write_text(info.read_text().replace('"version": "1.0.0"', '"version": "1.0.1"'))
  new = Bytes(dataset="tiny_sentences", data_dir=sentences, tokens=8).fingerprint()
  assert (old["version"], new["version"]) == ("1.0.0", "1.0.1") and old["sha256"] != new["sha256"]


def test_baselines_are_ordered_and_below_a_uniform_guess(sentences):
  got = Bytes(dataset="tiny_sentences", data_dir=sentences, tokens=8).baselines()
  assert 0 < got["bigram"] < got["unigram"] < np.log(256)


@pytest.mark.parametrize("text", ["plain", "naïve 数学\n", ""])
def test_decoding_undoes_encoding(text):
  assert Bytes().decode(Bytes().encode(text)) == text


def test_broken_characters_are_replaced():
  assert Bytes().decode([104, 105, 0xC3]) == "hi\ufffd"
