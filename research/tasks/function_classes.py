"""Functions in context: predict f at every x of a prompt x_1, y_1, x_2, y_2, ..., from the pairs before it.

The loss is the mean over positions of the squared error to f without its noise (the paper's target has the noise,
which moves no minimum). Families and shifts: layers/in_context/functions.py. A curriculum of Garg et al. begins with
fewer coordinates and points and adds some every so many steps, with one shape throughout; validation has all.

Reference: Garg, Tsipras, Liang and Valiant, "What Can Transformers Learn In-Context? A Case Study of Simple Function
Classes", 2022.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from layers.in_context import functions, prompts
from research.state import first_batch
from research.tasks import fields
from research.tasks import keys

# Dims: B batch, N points, D inputs.


@dataclasses.dataclass(frozen=True)
class FunctionClasses:
  """Prompts of one family of functions, with a prediction at every x.

  Attributes:
    dims: d, numbers in x.
    pairs: n; a prompt has n + 1 points, of which the last one's y is seen by nobody.
    family: "linear", "sparse", "quadratic", "relu_network" or "decision_tree".
    inputs: "normal", "half" or "opposite".
    condition: ratio of the lengths of the first half of the coordinates and the second; x keeps its mean square.
    x_scale, weight_scale: factors on x and on f.
    noise: variance of what is added to y.
    sparsity: entries of w that "sparse" keeps.
    hidden: units of relu_network.
    tree_depth: questions on a path of decision_tree.
    dims_start, points_start: coordinates and points of the first training steps; 0 has all at once.
    points_grow: points added at a time; of coordinates it is one.
    grow_every: training steps between additions.
    batch_size: prompts over all hosts.
    seed: of the data.
  """

  on_device: ClassVar[bool] = True

  dims: int = 20
  pairs: int = 40
  family: str = "linear"
  inputs: str = "normal"
  condition: float = 1.0
  x_scale: float = 1.0
  weight_scale: float = 1.0
  noise: float = 0.0
  sparsity: int = 3
  hidden: int = 100
  tree_depth: int = 4
  dims_start: int = 0
  points_start: int = 0
  points_grow: int = 2
  grow_every: int = 2000
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    fields.whole("dims", self.dims, 1, 2**12, "it counts the numbers in x")
    fields.whole("pairs", self.pairs, 1, 2**20, "a prompt has at least one pair")
    fields.one_of("family", self.family, functions.FAMILIES)
    fields.one_of("inputs", self.inputs, functions.INPUTS)
    fields.real("condition", self.condition, 1e-3, 1e3, "it is a ratio of lengths")
    fields.real("x_scale", self.x_scale, 1e-6, 1e6, "it multiplies x")
    fields.real("weight_scale", self.weight_scale, 1e-6, 1e6, "it multiplies f")
    fields.real("noise", self.noise, 0.0, 1e12, "it is a variance")
    fields.whole("sparsity", self.sparsity, 1, 2**12, "a function of no coordinate is 0")
    fields.whole("hidden", self.hidden, 1, 2**20, "it counts the units of relu_network")
    fields.whole("tree_depth", self.tree_depth, 1, 12, "a tree has 2^tree_depth leaves")
    fields.whole("dims_start", self.dims_start, 0, self.dims, "it counts coordinates of x, and 0 means all")
    fields.whole("points_start", self.points_start, 0, self.pairs + 1, "it counts points, and 0 means all")
    fields.whole("points_grow", self.points_grow, 1, 2**20, "it counts points")
    fields.whole("grow_every", self.grow_every, 1, 2**20, "it counts steps")
    drawn = {"relu_network": self.dims * self.hidden, "decision_tree": 2**self.tree_depth}.get(self.family, self.dims)
    fields.batch(self.batch_size, self.seed, max((2 * self.pairs + 1) * (self.dims + 1), drawn))

  def sizes(self, split: str, cursor):
    """Returns (coordinates, points) of a batch; both are numbers that a traced cursor makes arrays of.

    Args:
      split: only "train" has a curriculum.
      cursor: number of the batch, of which each seed has a stretch of its own.
    """
    step = cursor % first_batch(1)
    size = lambda start, stop, grow: functions.grown(step, start, stop, grow, self.grow_every) if (
        start and split == "train") else stop
    return size(self.dims_start, self.dims, 1), size(self.points_start, self.pairs + 1, self.points_grow)

  def root(self) -> np.ndarray:
    """Returns L, of which L L^T is the covariance of x."""
    half = np.arange(self.dims) < max(1, self.dims // 2)
    spread = np.where(half, self.condition, 1.0)
    return self.x_scale * np.diag(spread * (self.dims / np.sum(spread**2)) ** 0.5)

  def draw(self, key_B, dims=None) -> functions.Points:
    """Draws one prompt per key, of so many coordinates; None takes all."""
    wide = lambda number: jnp.asarray(number, jnp.float32)
    scale = functions.Scale(wide(self.root()), self.dims if dims is None else dims, wide(self.weight_scale),
                            wide(self.noise))
    return functions.draw(key_B, scale, points=self.pairs + 1, family=self.family, inputs=self.inputs,
                          sparsity=self.sparsity, hidden=self.hidden, depth=self.tree_depth)

  def encode(self, x_BND, y_BN):
    """Returns the tokens (x_1, 0), (0, y_1), ..., (x_N, 0), [B, 2 N - 1, D + 1]; the last y is not among them."""
    return prompts.interleaved(prompts.Prompts(x_BND[:, :-1], y_BN[:, :-1], x_BND[:, -1], None, None))

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    dims, points = self.sizes(split, step)
    drawn = self.draw(keys.of_rows(self, split, step, rows), dims)
    weights_BN = jnp.broadcast_to(jnp.arange(self.pairs + 1)[None] < points, drawn.f_BN.shape)
    return {"inputs": self.encode(drawn.x_BND, drawn.y_BN), "labels": drawn.f_BN,
            "weights": weights_BN.astype(jnp.float32)}

  def loss(self, outputs, batch):
    """Squared error of predictions [B, N], that of the last point alone, and its ratio to answering 0."""
    square_BN = jnp.square(outputs.astype(jnp.float32) - batch["labels"])
    weight_BN = batch["weights"]
    total = jnp.sum(square_BN * weight_BN)
    last = jnp.sum(square_BN[:, -1] * weight_BN[:, -1]), jnp.sum(weight_BN[:, -1])
    zero = jnp.sum(jnp.square(batch["labels"]) * weight_BN)
    return (total, jnp.sum(weight_BN)), {"risk": last, "of_zero": (total, zero)}

  def model_fields(self) -> dict[str, int]:
    return {}

  def fingerprint(self) -> dict:
    return {"dataset": "function_classes.FunctionClasses"} | dataclasses.asdict(self)

  def measure(self, program, state) -> dict:
    """Returns what an experiment's `measure` asks for: a trained decoder beside algorithms, layer by layer."""
    from research import in_context_layers
    return in_context_layers.measure(self, program, state)
