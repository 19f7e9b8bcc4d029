"""What is measured of a model that reads x and y as tokens of their own: numbers by name.

    in_context/*                  as in research/in_context_measures.py, beside one step of the best rate
    copying/own, /label, /others  |d out_k / d in_j| of layer 1 with its residual, of x tokens k for j = k, for the y
                                  behind it (the card's k + 1), and for any other token
    copying/label_ratio           the second of them over the third
    copying/input_ratio           the same of a y token and the x before it: pairs can be joined there as well
    copying/query_label           what x_q reads of y_n, over `others`: x_q has no label, so that it should not

Reference: von Oswald et al., "Transformers learn in-context by gradient descent", 2023, the section on standard tokens.
"""

import functools

import jax
import numpy as np

from layers.in_context import probes
from layers.probe import DEPTH
from layers.stack import by_depth
from research import in_context_measures as measures

# Dims: P prompts, T tokens, D token width, L layers.

PROMPTS = 8192
SEEN = 64  # prompts of which every derivative is taken


def measure(task, program, state) -> dict[str, float]:
  """Returns the numbers above.

  Args:
    task: an InContextRegression of "standard" tokens.
    program: of research/program.py, with a Regressor that takes them as its stream.
    state: of one trained model.
  """
  key = jax.random.fold_in(jax.random.key(task.seed), 7919)
  drawn, tokens_PTD = jax.jit(lambda key: _draw(task, key))(key)
  variables = {"params": state.params, **state.extra}
  predict = lambda tokens: program.model.apply(variables, tokens)[0][:, -1]
  answer_P = np.asarray(jax.jit(predict)(tokens_PTD), np.float64)
  slope_PD = np.asarray(jax.jit(functools.partial(probes.sensitivity, predict))(tokens_PTD), np.float64)
  found = measures.against(drawn, answer_P, slope_PD[:, task.places:], *measures.algorithm(task, drawn, 1))
  return found | copying(program.model, variables, tokens_PTD[:SEEN])


def _draw(task, key):
  drawn = task.draw(jax.random.split(key, PROMPTS))
  return drawn, task.encode(drawn)


def copying(model, variables, tokens_PTD) -> dict[str, float]:
  """Returns what layer 1 reads of which token."""
  runs = model.stack(parent=None).runs()
  def first(tokens):
    _, shown = model.apply(variables, tokens, mutable=[DEPTH])
    return by_depth(shown[DEPTH]["stack"], runs, lambda block: block["stream_BTD"][0])[0]
  size_TT = probes.reached(jax.jit(first), tokens_PTD)
  at = np.arange(0, len(size_TT) - 1, 2)
  own, label, others = probes.apart(size_TT, at, at + 1)
  _, before, rest = probes.apart(size_TT, at + 1, at)
  over = lambda part, whole: part / max(whole, 1e-12)  # a layer that reads nothing else has no ratio
  return {"copying/own": own, "copying/label": label, "copying/others": others,
          "copying/label_ratio": over(label, others), "copying/input_ratio": over(before, rest),
          "copying/query_label": over(float(size_TT[-1, -2]), others)}
