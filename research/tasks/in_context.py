"""Regression in context: from n pairs (x, y) of a function that was just drawn, predict it at one more x.

The loss is the squared error to the function without its noise, which for a linear function is the risk that
layers/in_context/closed_forms.py has formulas for. What a prompt is drawn from: layers/in_context/prompts.py.

    inputs   x = L z; "isotropic" L = I, "skewed" a diagonal L, the first half `condition` times the second, with
             tr L L^T = d (Fu et al.), "random" a diagonal L L^T of Exp(1) entries for every prompt (Zhang et al.)
    weights  "normal" w ~ N(0, I), "inverse" w ~ N(0, (L L^T)^-1) (Mahankali et al.)

References: von Oswald et al., "Transformers learn in-context by gradient descent", 2023; Zhang, Frei and Bartlett,
"Trained Transformers Learn Linear Models In-Context", 2024; Mahankali et al., 2024; Fu et al., 2024.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from layers.in_context import prompts
from layers.in_context import standard_tokens
from research.tasks import fields
from research.tasks import keys

# Dims: B batch, P predictions of a prompt, D inputs.

COVARIANCES = ("isotropic", "skewed", "random")
WEIGHTS = ("normal", "inverse")
TOKENS = ("concatenated", "interleaved", "standard")
# Variance and kurtosis of a coordinate of z.
MOMENTS = {"normal": (1.0, 3.0), "uniform": (1 / 12, 1.8)}


@dataclasses.dataclass(frozen=True)
class InContextRegression:
  """Prompts of one family of functions.

  Attributes:
    dims: d, numbers in x.
    pairs: n.
    coordinates: of z, "normal" or "uniform" on (-1/2, 1/2).
    scale: factor on x; von Oswald's input range r for uniform coordinates.
    covariance: "isotropic", "skewed" or "random".
    condition: ratio of the two scales of "skewed".
    weights: covariance of w, "normal" or "inverse".
    response: "linear", "relu_network" or "sinusoid".
    hidden: units of relu_network.
    noise: variance of what is added to y.
    encoding: "concatenated" tokens (x, y), one prediction; "interleaved" x and y in turn, one after every x;
      "standard" x and y in turn, behind their places, one prediction (layers/in_context/standard_tokens.py).
    places: numbers of a place.
    batch_size: prompts over all hosts.
    seed: of the data.
  """

  on_device: ClassVar[bool] = True

  dims: int = 10
  pairs: int = 10
  coordinates: str = "normal"
  scale: float = 1.0
  covariance: str = "isotropic"
  condition: float = 1.0
  weights: str = "normal"
  response: str = "linear"
  hidden: int = 100
  noise: float = 0.0
  encoding: str = "concatenated"
  places: int = 10
  batch_size: int = 512
  seed: int = 0

  def __post_init__(self):
    fields.whole("dims", self.dims, 1, 2**12, "it counts the numbers in x")
    fields.whole("pairs", self.pairs, 1, 2**20, "a prompt has at least one pair")
    fields.one_of("coordinates", self.coordinates, prompts.COORDINATES)
    fields.real("scale", self.scale, 1e-6, 1e6, "it multiplies x")
    fields.one_of("covariance", self.covariance, COVARIANCES)
    fields.real("condition", self.condition, 1e-3, 1e3, "it is a ratio of scales, and 0 would be a singular covariance")
    fields.one_of("weights", self.weights, WEIGHTS)
    fields.one_of("response", self.response, prompts.RESPONSES)
    fields.whole("hidden", self.hidden, 1, 2**20, "it counts the units of relu_network")
    fields.real("noise", self.noise, 0.0, 1e12, "it is a variance")
    fields.one_of("encoding", self.encoding, TOKENS)
    fields.whole("places", self.places, 2, 2**10, "a place has a sine and a cosine for every frequency")
    if self.places % 2:
      raise ValueError(f"places={self.places} must be even: a sine and a cosine for every frequency.")
    tokens = (2 * self.pairs + 1) * (self.dims + 1 + (self.places if self.encoding == "standard" else 0))
    width = self.dims * self.hidden if self.response == "relu_network" else self.dims
    fields.batch(self.batch_size, self.seed, max(tokens, width))

  def root(self) -> np.ndarray:
    """Returns L of one draw of z, scale included; of "random" its mean."""
    half = np.arange(self.dims) < max(1, self.dims // 2)
    spread = np.where(half, self.condition if self.covariance == "skewed" else 1.0, 1.0)
    return self.scale * np.diag(spread * (self.dims / np.sum(spread**2)) ** 0.5)

  def covariances(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns (covariance of x, covariance of w); the mean where it is drawn for every prompt."""
    sigma_DD = self.root() @ self.root().T * MOMENTS[self.coordinates][0]
    return sigma_DD, np.linalg.inv(sigma_DD) if self.weights == "inverse" else np.eye(self.dims)

  def law(self) -> prompts.Law:
    """Returns the arrays that prompts are drawn with."""
    weight_DD = np.linalg.cholesky(self.covariances()[1])
    return prompts.law(self.dims, noise=self.noise, spread=float(self.covariance == "random"),
                       root_DD=self.root(), weight_DD=weight_DD)

  def draw(self, key_B) -> prompts.Prompts:
    """Draws one prompt per key."""
    return prompts.draw(key_B, self.law(), n=self.pairs, coordinates=self.coordinates,
                        response=self.response, hidden=self.hidden)

  def encode(self, drawn: prompts.Prompts):
    """Returns the tokens of prompts."""
    if self.encoding == "concatenated":
      return prompts.concatenated(drawn)
    tokens_BTF = prompts.interleaved(drawn)
    return standard_tokens.placed(tokens_BTF, self.places) if self.encoding == "standard" else tokens_BTF

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    drawn = self.draw(keys.of_rows(self, split, step, rows))
    labels_BP = drawn.target_B[:, None]
    if self.encoding == "interleaved":
      labels_BP = jnp.concatenate([drawn.y_BN, labels_BP], axis=1)
    return {"inputs": self.encode(drawn), "labels": labels_BP, "weights": jnp.ones(labels_BP.shape)}

  def loss(self, outputs, batch):
    """Squared error of predictions [B, P], and of the last one of every prompt alone."""
    square_BP = jnp.square(outputs.astype(jnp.float32) - batch["labels"])
    weight_BP = batch["weights"]
    last = jnp.sum(square_BP[:, -1] * weight_BP[:, -1]), jnp.sum(weight_BP[:, -1])
    return (jnp.sum(square_BP * weight_BP), jnp.sum(weight_BP)), {"risk": last}

  def model_fields(self) -> dict[str, int]:
    return {}

  def fingerprint(self) -> dict:
    return {"dataset": "in_context.InContextRegression"} | dataclasses.asdict(self)

  def measure(self, program, state) -> dict[str, float]:
    """Returns what an experiment's `measure` asks for: a trained model beside algorithms and constructions."""
    from research import in_context_copying, in_context_measures
    chosen = in_context_copying if self.encoding == "standard" else in_context_measures
    return chosen.measure(self, program, state)
