"""How long one more token takes while a text is decoded: early in the text, and thousands of tokens later.

One sequence is decoded greedily from an empty state, in blocks of tokens that are one compiled loop each. A state
of fixed size promises the same time at any position; the first and last blocks show whether it keeps it.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp

BLOCK = 250  # tokens of one timed call
BLOCKS = 5  # whose median is a time


@functools.partial(jax.jit, static_argnames="model")
def block(model, variables, token_B, states):
  """Returns (last token, states) after BLOCK tokens, each the likeliest one after those before it."""
  def step(carry, _):
    token_B, states = carry
    logits_BTV, states = model.apply(variables, token_B[:, None], states)
    return (jnp.argmax(logits_BTV[:, -1], axis=-1).astype(token_B.dtype), states), None
  return jax.lax.scan(step, (token_B, states), None, length=BLOCK)[0]


def times(program, state, until: int = 10_000) -> dict[str, float]:
  """Returns milliseconds per token, "decode/ms" at the start and "decode/ms_late", and "decode/growth", their ratio.

  Args:
    program: of research/program.py, of a language model.
    state: of one trained model.
    until: tokens after which the late ones are timed.
  """
  variables = {"params": state.params, **state.extra}
  start = jnp.zeros(1, jnp.int32), program.model.init_state(1)
  jax.block_until_ready(block(program.model, variables, *start))
  carry, spent = start, []
  for _ in range(until // BLOCK + BLOCKS):
    begun = time.perf_counter()
    carry = jax.block_until_ready(block(program.model, variables, *carry))
    spent.append(1e3 * (time.perf_counter() - begun) / BLOCK)
  early, late = statistics.median(spent[:BLOCKS]), statistics.median(spent[-BLOCKS:])
  return {"decode/ms": early, "decode/ms_late": late, "decode/growth": late / early}
