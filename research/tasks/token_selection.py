"""Token selection: which of the tokens of a prompt says its label.

    y = sign of v . x_a for some token x_a, x_1, ..., x_T and the query z from the unit sphere

Its reason to be is `measure`, which trains the softmax attention of layers/in_context/attention_svm.py on a few
prompts by normalised full-batch descent, which no training of drawn batches is, and compares where its weights
grow to with the solution of the max-margin problem.

Reference: Tarzanagh et al., "Transformers as Support Vector Machines", 2023.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from layers.in_context import attention_svm
from research import token_svm
from research.tasks import fields
from research.tasks import keys

# Dims: B batch, T tokens, D width.


@dataclasses.dataclass(frozen=True)
class TokenSelection:
  """Prompts of unit tokens, the query last, labelled by coins.

  Attributes:
    choices: T, tokens to choose from.
    dims: D.
    examples: prompts that `measure` trains on, all at once.
    descent: steps of its normalised descent.
    batch_size: prompts over all hosts, of the engine's own training.
    seed: of the data.
  """

  on_device: ClassVar[bool] = True

  choices: int = 8
  dims: int = 10
  examples: int = 6
  descent: int = 1500
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    fields.whole("choices", self.choices, 2, 2**16, "one token would leave no choice")
    fields.whole("dims", self.dims, 1, 2**10, "it is the width of a token")
    fields.whole("examples", self.examples, 1, 2**10, "it counts the prompts that are separated")
    fields.whole("descent", self.descent, 1, 2**20, "it counts steps")
    fields.batch(self.batch_size, self.seed, (self.choices + 1) * self.dims)

  def batch(self, split, step, rows=slice(None)):
    """Rows of batch `step`; `step` may be traced."""
    one = lambda key: attention_svm.draw(key, 1, self.choices, self.dims)
    data = jax.vmap(one)(keys.of_rows(self, split, step, rows))
    tokens_BTD = jnp.concatenate([data.x_NTD[:, 0], data.z_ND], axis=1)
    return {"inputs": tokens_BTD, "labels": data.y_N, "weights": jnp.ones(data.y_N.shape)}

  def loss(self, outputs, batch):
    """Logistic loss of one number per prompt; no metrics."""
    each = jax.nn.softplus(-batch["labels"] * outputs.astype(jnp.float32)) * batch["weights"]
    return (jnp.sum(each), jnp.sum(batch["weights"])), {}

  def model_fields(self) -> dict[str, int]:
    return {}

  def fingerprint(self) -> dict:
    return {"dataset": "token_selection.TokenSelection"} | dataclasses.asdict(self)

  def measure(self, program, state) -> dict[str, float]:
    """Returns the correlation of trained attention with the max-margin weights of the tokens it selected.

    Args:
      program: not looked at; the attention is trained here.
      state: of the run, whose key draws the prompts.
    """
    data = attention_svm.draw(state.key, self.examples, self.choices, self.dims)
    start = jnp.zeros((self.dims, self.dims))
    weight, losses = jax.jit(attention_svm.descend, static_argnames="steps")(start, data, steps=self.descent)
    chosen = np.asarray(attention_svm.selected(weight, data))
    svm = token_svm.max_margin(token_svm.constraints(data.x_NTD, data.z_ND, chosen))
    return {"svm/correlation": token_svm.correlation(weight, svm), "svm/loss": float(losses[-1]),
            "svm/best_selected": float(np.mean(chosen == np.asarray(attention_svm.best(data)))),
            "svm/weight_norm": float(jnp.linalg.norm(weight))}
