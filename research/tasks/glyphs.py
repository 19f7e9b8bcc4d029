"""Glyphs: which of a few fixed bitmaps is this, wherever in the image it stands?

    image = noise + glyph moved by (dy, dx) from the middle,        dy, dx uniform in -J .. J

A glyph is an 8 x 8 bitmap with half of its pixels lit, the same for every seed: smoothed white noise, cut at its
median, each pixel doubled to 2 x 2. The image has 16 + 2 J pixels a side, so no glyph is cut off, and is one token.

`measure` asks what the gates of a mixture know, in nats of I(gate; y) with p(e, y) = mean_n gates[n, e] [y_n = y]: of
the class, and of the quadrant that the glyph was moved to (dy > 0, dx > 0).

Reference: Eigen, Ranzato, Sutskever, "Learning Factored Representations in a Deep Mixture of Experts", 2013,
section 4.1, whose digits are MNIST's.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from research import losses
from research.tasks import fields
from research.tasks import keys

# Dims: B batch, N images, G glyphs, E experts, Y values of what is asked for.

SIDE = 16  # pixels of a glyph in the image
MEASURED = 4096  # images


@functools.cache
def bitmaps(classes: int) -> np.ndarray:
  """Returns the glyphs [G, 16, 16], of 0 and 1."""
  noise = np.random.default_rng(0).standard_normal((classes, 10, 10))
  for axis in (1, 2):
    noise = np.apply_along_axis(np.convolve, axis, noise, (1.0, 2.0, 1.0), mode="valid")
  lit = noise > np.median(noise, axis=(1, 2), keepdims=True)
  return np.kron(lit, np.ones((1, 2, 2))).astype(np.float32)


def mutual_information(gates_NE, asked_N, values: int) -> float:
  """Returns I(gate; y) in nats; see the file's first lines.

  Args:
    gates_NE: weights, each row sums to 1.
    asked_N: y, whole numbers below `values`.
    values: Y.
  """
  joint_YE = np.eye(values)[np.asarray(asked_N)].T @ np.asarray(gates_NE, np.float64) / len(asked_N)
  apart_YE = joint_YE.sum(1, keepdims=True) * joint_YE.sum(0, keepdims=True)
  seen = joint_YE > 0
  return float(np.sum(joint_YE[seen] * np.log(joint_YE[seen] / apart_YE[seen])))


@dataclasses.dataclass(frozen=True)
class Glyphs:
  """Classification of moved glyphs.

  Attributes:
    glyphs: number of classes.
    jitter: J, in pixels.
    noise: standard deviation of what is added to every pixel.
    batch_size: images over all hosts.
    seed: of the data; the glyphs do not depend on it.
  """

  on_device: ClassVar[bool] = True

  glyphs: int = 10
  jitter: int = 4
  noise: float = 0.2
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    fields.whole("glyphs", self.glyphs, 2, 1000, "it counts classes")
    fields.whole("jitter", self.jitter, 1, 64, "it is how far a glyph is moved, in pixels")
    fields.real("noise", self.noise, 0.0, 100.0, "it is a standard deviation")
    fields.batch(self.batch_size, self.seed, (SIDE + 2 * self.jitter)**2)

  def example(self, key):
    """Returns one image [1, pixels], its class, and how far it was moved (dy, dx)."""
    of_label, of_move, of_noise = jax.random.split(key, 3)
    label, J = jax.random.randint(of_label, (), 0, self.glyphs), self.jitter
    move = jax.random.randint(of_move, (2,), -J, J + 1)
    image = self.noise * jax.random.normal(of_noise, (SIDE + 2 * J,) * 2)
    clean = jax.lax.dynamic_update_slice(jnp.zeros(image.shape), jnp.asarray(bitmaps(self.glyphs))[label], move + J)
    return (image + clean).reshape(1, -1), label, move

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    inputs_B1F, labels_B, _ = jax.vmap(self.example)(keys.of_rows(self, split, step, rows))
    return {"inputs": inputs_B1F, "labels": labels_B, "weights": jnp.ones(labels_B.shape)}

  def loss(self, outputs, batch):
    """Cross-entropy and accuracy of logits [B, glyphs]."""
    args = outputs, batch["labels"], batch["weights"]
    return losses.cross_entropy(*args), {"accuracy": losses.accuracy(*args)}

  def model_fields(self) -> dict[str, int]:
    return {"classes": self.glyphs}

  def fingerprint(self) -> dict:
    return {"dataset": "glyphs.Glyphs"} | dataclasses.asdict(self)

  def measure(self, program, state) -> dict[str, float]:
    """Returns what the gate of each layer of a model with a mixture in every layer knows, in nats, and its largest share."""
    many = dataclasses.replace(self, batch_size=MEASURED)
    inputs_N1F, labels_N, move_N2 = jax.jit(jax.vmap(many.example))(keys.of_rows(many, "validation", 0, slice(None)))
    _, sown = program.model.apply({"params": state.params, **state.extra}, inputs_N1F, None, mutable=["intermediates"],
                                  capture_intermediates=lambda module, _: module.name == "router")
    found, layer = {}, 0
    quadrant_N = np.asarray((move_N2 > 0) @ np.array([2, 1]))
    for routing in jax.tree.leaves(sown["intermediates"], is_leaf=lambda x: hasattr(x, "gates_NE")):
      gates_LNE = np.asarray(routing.gates_NE).reshape(-1, MEASURED, routing.gates_NE.shape[-1])
      for gates_NE in gates_LNE:
        layer += 1
        where, what = mutual_information(gates_NE, quadrant_N, 4), mutual_information(gates_NE, labels_N, self.glyphs)
        found |= {f"gate_{layer}/position": where, f"gate_{layer}/class": what,
                  f"gate_{layer}/position_over_class": where - what, f"gate_{layer}/class_over_position": what - where,
                  f"gate_{layer}/largest_share": float(gates_NE.mean(0).max())}
    return found
