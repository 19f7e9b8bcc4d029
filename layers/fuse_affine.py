"""Folds a norm that is affine in evaluation into the linear map that reads it.

    W^T (A x + B) + c = (A W)^T x + (c + W^T B)

A norm of this kind says its (A, B) by a method `as_affine(variables)`.
"""


def fuse(kernel_DF, bias_F, A_D, B_D):
  """Returns the kernel and bias that read the raw x; bias_F may be 0."""
  return A_D[:, None] * kernel_DF, bias_F + B_D @ kernel_DF
