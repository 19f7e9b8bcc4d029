"""Where glyphs stand, and what gates that are written down know of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from research import config as configs
from research import program as programs
from research.tasks import glyphs

TASK = glyphs.Glyphs(glyphs=3, jitter=2, noise=0.0, batch_size=32)
draw = jax.jit(jax.vmap(TASK.example))


def test_an_image_is_its_glyph_where_the_move_says():
  images_B1F, labels_B, moves_B2 = jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(0), 32)))
  shapes = glyphs.bitmaps(3)
  for image, label, (dy, dx) in zip(images_B1F.reshape(-1, 20, 20), labels_B, moves_B2):
    assert image.sum() == shapes[label].sum() == 32 * 4
    np.testing.assert_array_equal(image[2 + dy:18 + dy, 2 + dx:18 + dx], shapes[label])
  assert set(moves_B2.ravel()) == {-2, -1, 0, 1, 2} and set(labels_B) == {0, 1, 2}


def test_information_of_gates_written_down():
  labels = np.arange(120) % 10
  information = functools.partial(glyphs.mutual_information, asked_N=labels, values=10)
  uniform, own = np.full((120, 4), 0.25), np.eye(10)[labels]
  assert abs(information(uniform)) < 1e-12
  np.testing.assert_allclose(information(own), np.log(10))
  np.testing.assert_allclose(information(np.eye(2)[labels % 2]), np.log(2))
  # A gate that tells nothing from something half of the time knows less than half: I is convex in p(e | y).
  assert 0 < information(0.5 * np.eye(2)[labels % 2] + 0.25) < np.log(2) / 2
  assert abs(glyphs.mutual_information(np.eye(2)[np.arange(120) // 60], labels, 10)) < 1e-12


def test_gates_are_measured_in_the_order_of_their_layers(monkeypatch):
  monkeypatch.setattr(glyphs, "MEASURED", 64)
  config = configs.load("factored_experts:smoke")[2]
  program = programs.make(config)
  state = program.init(0)
  router = state.params["stack"]["scan_0_to_1"]["block_0"]["channel"]["router"]
  # The second gate gives all to expert 2; the first is even.
  logits = {"kernel": 0 * router["logits"]["kernel"], "bias": jnp.zeros((2, 4)).at[1, 2].set(50.0)}
  router = {**router, "logits": logits}
  stack = {"scan_0_to_1": {"block_0": {**state.params["stack"]["scan_0_to_1"]["block_0"]}}}
  stack["scan_0_to_1"]["block_0"]["channel"] = {**stack["scan_0_to_1"]["block_0"]["channel"], "router": router}
  found = program.task.measure(program, state.replace(params={**state.params, "stack": {**state.params["stack"], **stack}}))
  np.testing.assert_allclose([found["gate_1/largest_share"], found["gate_2/largest_share"]], [0.25, 1.0], rtol=1e-6)
  assert max(abs(found[f"gate_{layer}/{what}"]) for layer in (1, 2) for what in ("position", "class")) < 1e-6
