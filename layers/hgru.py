"""The gated mean: each channel remembers a running average whose rate the token chooses.

    h_t = f_t h_{t-1} + (1 - f_t) c_t        f_t = l + (1 - l) sigmoid(z_t)

elementwise, with a lower bound l in [0, 1) on the memory. h stays within the range of
the c it was made of.

Reference: Qin et al., "Hierarchically Gated Recurrent Neural Network for Sequence
Modeling", 2023, with real numbers; Zhu et al., "Scalable MatMul-free Language Modeling",
2024, section 3.3.1.
"""

import flax.linen as nn
import jax.numpy as jnp

from layers.norms.rms_norm import RMSNorm
from pallas_kernels.diag_scan import diag_scan

# Dims: B batch, T tokens, D model, F channels.


def hgru(z_BTF, c_BTF, h_BF=None, segment_ids_BT=None, *, lower_bound=0.0, backend="auto"):
  """Runs the recurrence in float32.

  Args:
    z_BTF: logits of the forget gate.
    c_BTF: candidates.
    h_BF: average left by earlier tokens; zeros if None.
    segment_ids_BT: of the tokens, or None.
    lower_bound: l.
    backend: of the kernel.

  Returns:
    (h_BTF, h_BF after the last token), in float32.

  Raises:
    ValueError: l outside [0, 1).
  """
  if not 0 <= lower_bound < 1:
    raise ValueError(f"lower_bound={lower_bound} must lie in [0, 1); at 1 nothing is ever written.")
  # From the logit itself: 1 - sigmoid(20) is 0 in float32.
  write_BTF = (1 - lower_bound) * nn.sigmoid(-z_BTF.astype(jnp.float32))
  return diag_scan(1 - write_BTF, write_BTF * c_BTF.astype(jnp.float32), h0=h_BF,
                   segment_ids=segment_ids_BT, backend=backend)


def mix(layer, project, x_BTD, state, segment_ids):
  """Runs the whole mixer: maps in, the recurrence, a gated norm, a map out.

  Args:
    layer: the module with fields width, lower_bound, backend and dtype, in its compact call.
    project: (width, name) -> the linear map of that name.
    x_BTD: tokens.
    state: of earlier tokens, or None.
    segment_ids: of the tokens, or None.

  Returns:
    (y_BTD, state).
  """
  h_BTF, h_BF = hgru(
      project(layer.width, "forget")(x_BTD), nn.silu(project(layer.width, "value")(x_BTD)),
      (state or {}).get("h_BF"), segment_ids, lower_bound=layer.lower_bound, backend=layer.backend)
  y_BTF = RMSNorm(eps=1e-5, name="norm")(h_BTF).astype(layer.dtype)
  y_BTF *= nn.silu(project(layer.width, "gate")(x_BTD))
  return project(x_BTD.shape[-1], "out")(y_BTF), dict(h_BF=h_BF)
