"""Splits a trained gated linear unit into experts, and the loss that teaches a router which of them to use.

The hidden width F is cut into E contiguous parts; part e of gate, up and down is expert e, and

    FFN(x) = sum_e expert_e(x)                                    exactly
    y = (E / K) sum of expert_e(x) over the K largest router logits

With hard gates only losses reach the router. The prior-approximate loss compares each expert with its share of what
the teacher, the dense unit on the teacher's own tokens, gives:

    m_e = mean_D (expert_e(x) - K t / E)^2,   label = 1 for the K smallest m, else 0
    loss = mean over tokens of KL(softmax(router(x)) || softmax(label))

Reference: Zhao et al., "FactorLLM: Factorizing Knowledge via Mixture of Experts for Large Language Models", 2024.
The published code takes the mean over the first row of a batch only; ours is over all.
"""

import jax
import jax.numpy as jnp

from layers.activations import activation

# Dims: N tokens, D model width, F hidden width of an expert, E experts, K experts per token.

TEACHER = "teacher"  # collection of the weights before any training as experts


def part(hidden: int, E: int) -> int:
  """Returns F, the hidden width of one of E experts.

  Raises:
    ValueError: E does not divide the hidden width.
  """
  if E < 1 or hidden % E:
    raise ValueError(f"experts={E} must divide the hidden width {hidden}.")
  return hidden // E


def split(params, E: int) -> dict:
  """Returns gate_EDF, up_EDF and down_EFD of the parameters of layers/channel/glu.py without biases.

  Raises:
    ValueError: E does not divide the hidden width, or there are biases.
  """
  gate, up, down = (params[name]["kernel"] for name in ("gate", "up", "down"))
  D, hidden = gate.shape
  F = part(hidden, E)
  if any("bias" in params[name] for name in ("gate", "up", "down")):
    raise ValueError("bias=True: a bias on the output belongs to no expert; split a unit with bias=False.")
  columns = lambda kernel: kernel.reshape(D, E, F).swapaxes(0, 1)
  return dict(gate_EDF=columns(gate), up_EDF=columns(up), down_EFD=down.reshape(E, F, D))


def of_experts(name: str) -> str:
  """Returns the name of a module of layers/channel/factored_glu.py: "experts_gate" of "gate_EDF"."""
  return f"experts_{name.partition('_')[0]}"


def cut(layer, fresh) -> dict:
  """Returns the parameters of a layer of the stack whose channel is that of layers/channel/factored_glu.py.

  Args:
    layer: with the channel of layers/channel/glu.py.
    fresh: the new layer as drawn, of which its router is kept.
  """
  parts = split(layer["channel"], fresh["channel"]["experts_gate"]["kernel"].shape[0])
  kernels = {of_experts(name): {"kernel": kernel} for name, kernel in parts.items()}
  return {**layer, "channel": {**fresh["channel"], **kernels}}


def teacher_of(params, teacher):
  """Returns the collection TEACHER of a model, of its parameters now.

  Args:
    params: of the model.
    teacher: the collection, with any values.
  """
  kept = lambda name, inside: (teacher_of(params[name], inside) if hasattr(inside, "items")
                               else params[of_experts(name)]["kernel"])
  return {name: kept(name, inside) for name, inside in teacher.items()}


def experts(weights: dict, x_ND, name: str = "silu"):
  """Returns what every expert makes of every token, y_END; their sum is the dense unit."""
  gate_ENF = activation(name)(jnp.einsum("nd,edf->enf", x_ND, weights["gate_EDF"]))
  up_ENF = jnp.einsum("nd,edf->enf", x_ND, weights["up_EDF"])
  return jnp.einsum("enf,efd->end", gate_ENF * up_ENF, weights["down_EFD"])


def chosen(scores_NE, K: int):
  """Returns [N, E] of ones at the K largest scores of each token and zeros elsewhere, float32.

  Raises:
    ValueError: K outside 1 to E.
  """
  E = scores_NE.shape[-1]
  if not 1 <= K <= E:
    raise ValueError(f"top_k={K} must be from 1 to experts={E}.")
  index_NK = jax.lax.top_k(scores_NE.astype(jnp.float32), K)[1]
  return jnp.sum(jax.nn.one_hot(index_NK, E), axis=1)


def combine(y_END, logits_NE, K: int):
  """Returns y_ND: the K chosen experts with weight E / K each; no gradient reaches the logits."""
  E = logits_NE.shape[-1]
  return E / K * jnp.einsum("ne,end->nd", chosen(logits_NE, K).astype(y_END.dtype), y_END)


def label(y_END, teacher_ND, K: int):
  """Returns [N, E], ones at the K experts that come nearest to K / E of the teacher; it has no gradient."""
  share_1ND = (K / y_END.shape[0] * teacher_ND)[None]
  miss_NE = jnp.mean(jnp.square((y_END - share_1ND).astype(jnp.float32)), axis=-1).T
  return jax.lax.stop_gradient(chosen(-miss_NE, K))


def prior_approximate_loss(y_END, teacher_ND, logits_NE, K: int):
  """Returns the mean over tokens of the divergence of the router from the experts that come nearest.

  Args:
    y_END: of all experts.
    teacher_ND: the dense unit's output on the teacher's tokens.
    logits_NE: of the router.
    K: experts per token.
  """
  log_label_NE = jax.nn.log_softmax(label(y_END, teacher_ND, K))
  log_p_NE = jax.nn.log_softmax(logits_NE.astype(jnp.float32))
  return jnp.mean(jnp.sum(jnp.exp(log_p_NE) * (log_p_NE - log_label_NE), axis=-1))
