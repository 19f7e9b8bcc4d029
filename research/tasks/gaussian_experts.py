"""Gaussian experts: what is y at x, drawn from a softmax-gated mixture of two linear experts.

Its reason to be is `measure`, which fits mixtures of three experts to samples of growing size by maximum likelihood
(research/gaussian_experts.py), which no training of drawn batches is, and returns how fast their errors fall.

Reference: Nguyen, Akbarian, Ho, "Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?", 2024.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from layers.activations import activation
from research import gaussian_experts as mixtures
from research.tasks import fields
from research.tasks import keys

# Dims: B batch.


@dataclasses.dataclass(frozen=True)
class GaussianExperts:
  """Prompts of two tokens, a pair (x, y) and a query (x, 0), labelled with the query's y.

  Attributes:
    gate: f of the gate, of the truth and of the fits: "identity", "sigmoid", "tanh" or "gelu".
    samples: sizes of the samples that `measure` fits.
    repeats: fits of each size, each to a sample of its own.
    batch_size: prompts over all hosts, of the engine's own training.
    seed: of the data.
  """

  on_device: ClassVar[bool] = True

  gate: str = "identity"
  samples: tuple[int, ...] = (1000, 10_000)
  repeats: int = 3
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    fields.one_of("gate", self.gate, tuple(mixtures.GATES))
    if not isinstance(self.samples, tuple) or len(set(self.samples)) < 2:
      raise ValueError(f"samples={str(self.samples):.200} must be two sizes or more; a slope is of several.")
    for size in self.samples:
      fields.whole("samples", size, 10, 10**7, "it counts pairs that 14 numbers are fitted to")
    fields.whole("repeats", self.repeats, 1, 10**4, "it counts fits of each size")
    fields.batch(self.batch_size, self.seed, 2)

  def _pair(self, key):
    """Returns (x, y) of the truth."""
    of_x, of_expert, of_noise = jax.random.split(key, 3)
    x, truth = jax.random.uniform(of_x, (), minval=-2.0, maxval=2.0), mixtures.TRUTH
    bend = activation({"gelu": "gelu_exact"}.get(self.gate, self.gate))
    expert = jax.random.categorical(of_expert, (bend(x * truth.w_E) + truth.b_E) / truth.tau)
    mean, variance = jnp.asarray(truth.a_E)[expert] * x + jnp.asarray(truth.c_E)[expert], jnp.asarray(truth.v_E)[expert]
    return x, mean + jnp.sqrt(variance) * jax.random.normal(of_noise)

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    two = jax.vmap(lambda key: jax.vmap(self._pair)(jax.random.split(key)))
    x_B2, y_B2 = two(keys.of_rows(self, split, step, rows))
    tokens_B2F = jnp.stack([x_B2, y_B2.at[:, 1].set(0.0)], axis=-1)
    labels_B1 = y_B2[:, 1:]
    return {"inputs": tokens_B2F, "labels": labels_B1, "weights": jnp.ones(labels_B1.shape)}

  def loss(self, outputs, batch):
    """Squared error of one number per prompt; no metrics."""
    each = jnp.square(outputs.astype(jnp.float32) - batch["labels"]) * batch["weights"]
    return (jnp.sum(each), jnp.sum(batch["weights"])), {}

  def model_fields(self) -> dict[str, int]:
    return {}

  def fingerprint(self) -> dict:
    return {"dataset": "gaussian_experts.GaussianExperts"} | dataclasses.asdict(self)

  def measure(self, program, state) -> dict[str, float]:
    """Returns the slope of log error against log samples, and the errors.

    "mle/slope" is of all parameters, "mle/slope_scaled" of w / tau and b / tau in place of w, b and tau.

    Args:
      program: not looked at; the mixtures are fitted here.
      state: of the run, whose key draws samples and starts.
    """
    random = np.random.default_rng(np.asarray(jax.random.key_data(state.key)))
    errors, scaled = mixtures.errors(self.gate, self.samples, self.repeats, random)
    found = {"mle/slope": mixtures.slope(self.samples, errors), "mle/slope_scaled": mixtures.slope(self.samples, scaled)}
    for size, error, error_scaled in zip(self.samples, errors, scaled):
      found |= {f"mle/error_{size}": float(np.exp(np.mean(np.log(error)))),
                f"mle/error_scaled_{size}": float(np.exp(np.mean(np.log(error_scaled))))}
    return found
