"""Text from a trained model: read the prompt at once, then one token at a time.

Every step costs the same, however long the text: what the model remembers is
its state, of fixed size.
"""

import functools

import jax
import jax.numpy as jnp

from research.errors import ConfigError, shown

MAX_TOKENS = 10**6


def check(sample, max_positions: int) -> None:
  """Refuses a length or temperature that no text has, and more text than there are positions."""
  key = "config.sample"
  if not 0 <= sample.tokens <= MAX_TOKENS:
    raise ConfigError(f"{key}.tokens={sample.tokens} must be from 0 to {MAX_TOKENS}; 0 samples nothing.")
  if sample.temperature < 0:
    raise ConfigError(f"{key}.temperature={sample.temperature} must not be negative; "
                      "0 takes the likeliest token.")
  if sample.tokens and not sample.prompt:
    raise ConfigError(f"{key}.prompt={shown(sample.prompt)} must not be empty.")
  longest = sample.tokens + len(sample.prompt.encode())
  if sample.tokens and 0 < max_positions < longest:
    raise ConfigError(f"{key}.tokens={sample.tokens} and the prompt make {longest} tokens, more than "
                      f"config.model.max_positions={max_positions}; sample fewer.")


@functools.partial(jax.jit, static_argnames=("model", "length"))
def generate(model, variables, prompt_BT, key, *, length: int, temperature=1.0):
  """Returns [B, length] tokens that continue the prompts.

  Args:
    model: the unbound language model, in eval mode.
    variables: its parameters and other collections.
    prompt_BT: at least one token each.
    key: step n of the text draws with fold_in(key, n).
    length: tokens to draw.
    temperature: 0 takes the likeliest token; 1 samples the model's distribution.
  """
  logits_BTV, states = model.apply(variables, prompt_BT, model.init_state(prompt_BT.shape[0]))

  def step(carry, n):
    logits_BV, states = carry
    drawn = jax.random.categorical(
        jax.random.fold_in(key, n), logits_BV / jnp.maximum(temperature, 1e-6))
    token_B = jnp.where(temperature > 0, drawn, jnp.argmax(logits_BV, axis=-1))
    logits_BTV, states = model.apply(variables, token_B[:, None], states)
    return (logits_BTV[:, -1], states), token_B

  _, token_TB = jax.lax.scan(step, (logits_BTV[:, -1], states), jnp.arange(length))
  return token_TB.T
