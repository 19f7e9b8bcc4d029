"""The model in numbers, counted and not typed: model_table.csv and the table of a dry run."""

import csv
import io
import math

import jax

from research import count, parameters
from research import step as steps


def rows(program) -> list[tuple[str, object, str]]:
  """Returns (quantity, value, unit) of one model of the program."""
  state, batch = program.abstract, program.batch
  if program.seeds:
    drop = lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype)
    state = jax.tree.map(drop, state)
  roles = jax.tree.leaves(parameters.roles(state.params),
                          is_leaf=lambda r: isinstance(r, parameters.Role))
  sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)]
  tables = sum(n for n, role in zip(sizes, roles) if role.leaf == "embedding")
  tokens = program.tokens_per_step
  forward = count.of_function(
      lambda p, e, b: steps.eval_forward(program.model, program.task, p, e, b),
      state.params, state.extra, batch)
  backward = count.of_function(
      lambda s, b: steps.gradient(program.model, program.task, s, b, 1)[0], state, batch)
  return [
      ("parameters", sum(sizes), ""),
      ("parameters without embeddings", sum(sizes) - tables, ""),
      ("decoding state", count.state_bytes(program.model), "bytes per sequence"),
      ("forward", round(forward / tokens), "FLOPs per token"),
      ("forward and backward", round(backward / tokens), "FLOPs per token"),
      ("state of training", count.nbytes(state), "bytes"),
      ("tokens per step", tokens, ""),
      ("steps", program.config.optim.steps, ""),
  ]


def as_csv(table) -> str:
  """Returns the rows as CSV text."""
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows([("quantity", "value", "unit"), *table])
  return text.getvalue()


def as_text(table) -> str:
  """Returns the rows as aligned lines."""
  return "\n".join(f"  {name:<30} {value:>15,} {unit}".rstrip() for name, value, unit in table)
