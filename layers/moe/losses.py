"""Auxiliary losses of routers: un-weighted, in float32, of all tokens that are given, or of those that are real.

They are statistics of a whole batch. Computed on parts and averaged they are other
quantities, so they belong outside of any `shard_map`.

    importance   CV^2 over experts of sum_n gates[n, e]
    load         CV^2 over experts of sum_n P(n, e), P(n, e) the chance that new noise leaves e chosen
    balance      E sum_e f_e P_e, f_e the share of tokens assigned to e, P_e the mean probability
    z            mean_n (log sum_e exp logits[n, e])^2
    chunk        1 - mean over chunks and experts of prod_{t in chunk} (1 - p[t, e])
    locality     mean BCE(sigmoid(b a_{t-1}), sigmoid(b a_t)), b = 100

CV is standard deviation over mean, with the biased variance.

References: Shazeer et al., 2017, section 4 and appendix A; Fedus et al., "Switch Transformers",
2022, equation 4; Zoph et al., "ST-MoE", 2022, equation 5; Song et al., "BlockFFN", 2025 (chunk, locality).
"""

from einops import rearrange
import jax
import jax.numpy as jnp

from layers import routing

# Dims: N tokens, E experts, K experts per token, B rows, T tokens of a row, C tokens of a chunk.


def cv_squared(x_E):
  """Returns the squared coefficient of variation; 0 where all are 0."""
  return jnp.var(x_E) / (jnp.square(jnp.mean(x_E)) + 1e-10)


def importance(gates_NE):
  """Returns CV^2 of what the experts weigh in the mixture."""
  return cv_squared(jnp.sum(gates_NE, axis=0))


def chance(clean_NE, noisy_NE, std_NE, top_k: int):
  """Returns [N, E], P(e is among the top_k under new noise on e alone); needs top_k < E."""
  top_NK = jax.lax.top_k(noisy_NE, top_k + 1)[0]
  kept_N1, next_N1 = top_NK[:, top_k - 1:top_k], top_NK[:, top_k:]
  # The k-th largest of the others: for those inside, the first outside, and the other way round.
  rival_NE = jnp.where(noisy_NE > next_N1, next_N1, kept_N1)
  return jax.scipy.stats.norm.cdf((clean_NE - rival_NE) / std_NE)


def balance(p_NE, assigned_NE, real_N=None):
  """Returns E sum f P: 1 at balance with one assignment per token, K with K of them.

  Args:
    p_NE: probabilities.
    assigned_NE: 1 where a token counts for an expert; without gradient.
  """
  f_E = routing.mean(jax.lax.stop_gradient(assigned_NE), real_N)
  return p_NE.shape[-1] * jnp.sum(f_E * routing.mean(p_NE, real_N))


def row_balance(p_NE, assigned_NE, tokens: int, real_N=None):
  """Returns the balance loss of each row of `tokens` by itself, mean over rows with real tokens; 1 at balance."""
  real_BT = None if real_N is None else real_N.reshape(-1, tokens)
  each = jax.vmap(routing.mean, in_axes=(0, None if real_N is None else 0))
  rows = lambda x_NE: each(rearrange(x_NE, "(b t) e -> b t e", t=tokens), real_BT)
  share_NE = assigned_NE / jnp.sum(assigned_NE, axis=-1, keepdims=True)
  f_BE = jax.lax.stop_gradient(rows(share_NE))
  loss_B = p_NE.shape[-1] * jnp.sum(f_BE * rows(p_NE), axis=-1)
  return routing.mean(loss_B, None if real_N is None else jnp.any(real_BT, axis=1))


def z(logits_NE, real_N=None):
  """Returns the mean squared log partition function, which keeps logits small."""
  return routing.mean(jnp.square(jax.nn.logsumexp(logits_NE, axis=-1)), real_N)


def chunk_touch(p_NE, tokens: int, chunk: int, real_N=None):
  """Returns the mean over chunks and experts of the chance that a chunk touches an expert.

  Args:
    p_NE: chance that a token uses an expert.
    tokens: per row; the last chunk of a row may be shorter.
    chunk: tokens of a chunk.
    real_N: which tokens count; chunks without any do not.
  """
  # The sum of logs has a gradient even where one factor is nearly 0.
  log_NE = routing.only(jnp.log(1.0 - p_NE + 1e-5), real_N)
  def chunks(x_NE):
    x_BTE = jnp.pad(rearrange(x_NE, "(b t) e -> b t e", t=tokens), ((0, 0), (0, -tokens % chunk), (0, 0)))
    return jnp.sum(rearrange(x_BTE, "b (j c) e -> (b j) c e", c=chunk), axis=1)
  live_J = None if real_N is None else chunks(real_N[:, None])[:, 0] > 0
  return 1.0 - jnp.mean(routing.mean(jnp.exp(chunks(log_NE)), live_J))


def locality(logits_NE, tokens: int, sharpness: float = 100.0, real_N=None):
  """Returns how unlike the choices of neighbouring tokens are, both real; 0 for rows of one token."""
  z_BTE = sharpness * rearrange(logits_NE, "(b t) e -> b t e", t=tokens)
  if tokens < 2:
    return jnp.zeros(())
  before, after = z_BTE[:, :-1], jax.nn.sigmoid(z_BTE[:, 1:])
  miss_BT = jnp.mean(jax.nn.softplus(before) - before * after, axis=-1)
  if real_N is None:
    return jnp.mean(miss_BT)
  real_BT = real_N.reshape(-1, tokens)
  return routing.mean(miss_BT.reshape(-1), (real_BT[:, :-1] & real_BT[:, 1:]).reshape(-1))
