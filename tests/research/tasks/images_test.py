"""Digits and TFDS images as sequences: which pixel is which token, and which image which row."""

import io

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_digits

from research.data import text_files
from research.tasks import images
from research.tasks.images import Images

pytestmark = pytest.mark.usefixtures("own_cache")

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 4, 6, 3), np.uint8)


def _png(image):
  # TFDS needs TensorFlow to compress an array, and nothing to store a file.
  file = io.BytesIO()
  PIL.Image.fromarray(image).save(file, "png")
  file.seek(0)
  return file


@pytest.fixture
def tiny(tmp_path):
  """A prepared TFDS set of 20 training and 10 test images in three classes."""
  import tensorflow_datasets as tfds

  class TinyImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    url_infos = {}

    def _info(self):
      features = tfds.features.FeaturesDict({
          "image": tfds.features.Image(shape=(4, 6, 3)),
          "label": tfds.features.ClassLabel(num_classes=3)})
      return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=features)

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(0, 20), "test": self._generate_examples(20, 30)}

    def _generate_examples(self, start, end):
      for i in range(start, end):
        yield i, {"image": _png(PIXELS[i]), "label": i % 3}

  text_files.prepare(TinyImages(data_dir=str(tmp_path / "tfds"), file_format="array_record"))
  return str(tmp_path / "tfds")


def _rows(task, split):
  """Inputs and labels of one pass, without what is filled up."""
  batches = [task.batch(split, i) for i in range(task.batches(split))]
  joined = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
  return [joined[k][joined["weights"] > 0] for k in ("inputs", "labels")]


def test_pixels_come_row_by_row_and_patches_hold_their_square():
  image = np.arange(4 * 6 * 3).reshape(1, 4, 6, 3)
  np.testing.assert_array_equal(images.tokens(image, 1)[0], image.reshape(24, 3))
  patches = images.tokens(image, 2)[0]
  assert patches.shape == (6, 12)
  np.testing.assert_array_equal(patches[4], image[0, 2:4, 2:4].reshape(-1))


def test_digits_are_all_there_once_with_their_labels():
  digits = load_digits()
  want = {(d / 16).astype(np.float32).tobytes(): t for d, t in zip(digits.images, digits.target)}
  seen = []
  for split, count in (("train", 1438), ("validation", 359)):
    # 1438 = 2 * 719 and 359 is prime: no batch size fits both, one image at a time does.
    inputs, labels = _rows(Images(batch_size=719 if split == "train" else 100), split)
    assert inputs.shape == (count, 64, 1)
    assert all(want[x.tobytes()] == label for x, label in zip(inputs, labels))
    seen += [x.tobytes() for x in inputs]
  assert sorted(seen) == sorted(want) and len(want) == 1797


def test_an_epoch_is_a_permutation_and_the_next_is_another():
  task = Images(batch_size=719)
  epochs = [[x.tobytes() for s in (2 * e, 2 * e + 1) for x in task.batch("train", s)["inputs"]]
            for e in range(2)]
  assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]


def test_permuted_pixels_are_those_of_the_image_in_one_order_for_all():
  plain, permuted = Images(batch_size=100), Images(batch_size=100, permuted=True)
  for split in ("train", "validation"):
    straight, scrambled = (task.batch(split, 1) for task in (plain, permuted))
    np.testing.assert_array_equal(scrambled["inputs"], straight["inputs"][:, images.scrambled(64)])
    np.testing.assert_array_equal(scrambled["labels"], straight["labels"])
  # Neighbours are a third of the row apart on average.
  assert np.mean(np.abs(np.diff(images.scrambled(64)))) > 16
  assert sorted(images.scrambled(64)) == list(range(64))
  assert plain.fingerprint() != permuted.fingerprint()


def test_the_last_validation_batch_is_filled_with_weight_zero():
  task = Images(batch_size=100)
  weights = [task.batch("validation", i)["weights"].sum() for i in range(5)]
  assert weights == [100, 100, 100, 59, 100]


@pytest.mark.parametrize("layout, shape", [("pixels", (24, 3)), ("patches", (6, 12))])
def test_a_tfds_image_set_is_read_by_name(tiny, layout, shape):
  task = Images(dataset="tiny_images", data_dir=tiny, layout=layout, batch_size=5)
  assert task.model_fields() == {"classes": 3}
  for split, own in (("train", range(20)), ("validation", range(20, 30))):
    inputs, labels = _rows(task, split)
    want = images.tokens(PIXELS[own] / np.float32(255), 2 if layout == "patches" else 1)
    assert inputs.shape[1:] == shape
    got = {x.tobytes(): label for x, label in zip(inputs, labels)}
    assert got == {x.tobytes(): i % 3 for x, i in zip(want, own)}


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path):
  with pytest.raises(ValueError, match=r"^dataset='mnist' is not prepared in .*download=true.* prepare it with: python -c"):
    Images(dataset="mnist", data_dir=str(tmp_path)).batch("train", 0)


def test_text_is_not_taken_for_images(tmp_path):
  records = iter([(0, {"path": b"", "text": b"words"})])
  text_files.prepare(text_files.builder({"train": records}, tmp_path, "only_text"))
  with pytest.raises(ValueError, match=r"^dataset='only_text' has the features \['path', 'text'\]"):
    Images(dataset="only_text", data_dir=str(tmp_path)).batch("train", 0)


def test_the_fingerprint_knows_which_images(tiny):
  digits, other = Images().fingerprint(), Images(dataset="tiny_images", data_dir=tiny).fingerprint()
  assert digits["records"] == {"train": 1438, "validation": 359} and other["version"] == "1.0.0"
  assert digits["sha256"] != other["sha256"]
