"""Causal convolution with a filter as long as the row, by Fourier transform.

    y_t = sum_{l=0}^{t} k_l u_{t-l}        t = 0 .. T-1

The transform is of length 2T or more, so nothing wraps around. Its rounding spreads over
the row: a token reaches those before it by about 1e-7 of the largest output, where a loop
over tokens would give exactly zero.

Reference: Gu et al., "Combining Recurrent, Convolutional, and Continuous-time Models with
Linear State-Space Layers", 2021, section 3.
"""

import jax.numpy as jnp


def fft_conv(u, kernel):
  """Convolves along axis 1 in float32; differentiable in both.

  Args:
    u: inputs [B, T, *channels], real.
    kernel: filter [T, *channels], row l for what came l tokens before; an axis of size 1
      in either is shared by the other's channels.

  Returns:
    y [B, T, *channels] in float32.

  Raises:
    ValueError: the shapes do not fit.
  """
  T = u.shape[1] if u.ndim > 1 else 0
  fit = u.ndim == kernel.ndim + 1 and T == kernel.shape[0] > 0 and all(
      c == k or 1 in (c, k) for c, k in zip(u.shape[2:], kernel.shape[1:]))
  if not fit:
    raise ValueError(f"u has shape {u.shape} and kernel {kernel.shape}, must be [B,T,channels...] and "
                     "[T,channels...]; cut or pad the kernel to the T tokens.")
  n = 1 << (2 * T - 1).bit_length()
  spectrum = jnp.fft.rfft(u.astype(jnp.float32), n, axis=1)
  spectrum = spectrum * jnp.fft.rfft(kernel.astype(jnp.float32), n, axis=0)[None]
  return jnp.fft.irfft(spectrum, n, axis=1)[:, :T]
