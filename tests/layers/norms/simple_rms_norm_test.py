"""Both published forms against float64, their invariance, their gradient at zero, and the refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.norms import simple_rms_norm as srms

FORMS = {"inside": lambda x, eps: x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps),
         "outside": lambda x, eps: x / (np.sqrt(np.mean(x * x, -1, keepdims=True)) + eps)}
MODULE = {form: srms.SimpleRMSNorm(form=form) for form in FORMS}
RUN = {form: jax.jit(lambda x, norm=norm: norm.apply({}, x)) for form, norm in MODULE.items()}
SLOPE = {form: jax.jit(jax.grad(lambda x, run=run: jnp.sum(jnp.sin(run(x))))) for form, run in RUN.items()}

forms = pytest.mark.parametrize("form", FORMS)


def _tokens(seed):
  return np.random.default_rng(seed).standard_normal((3, 8), np.float32)


def _rel(got, want):
  return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


@forms
def test_a_norm_is_its_equation(form):
  # As small as eps allows it to matter: 1e-6 is the mean square at 1e-3, 1e-8 the root at 1e-8.
  for size in (1.0, 1e-3, 1e-8):
    x = np.float32(size) * _tokens(0)
    assert _rel(RUN[form](x), FORMS[form](np.asarray(x, np.float64), srms.EPS[form])) < 1e-6


@forms
def test_a_factor_leaves_only_its_sign(form):
  x = 100 * _tokens(1)
  for factor in (-3.0, 1e6):
    assert _rel(RUN[form](np.float32(factor) * x), np.sign(factor) * FORMS[form](np.asarray(x, np.float64), 0)) < 1e-6


def test_at_zero_the_forms_rise_by_their_own_eps():
  zero = np.zeros((3, 8), np.float32)
  np.testing.assert_allclose(SLOPE["inside"](zero), 1e3, rtol=1e-5)
  np.testing.assert_allclose(SLOPE["outside"](zero), 1e8, rtol=1e-5)


def test_an_unknown_form_is_refused():
  with pytest.raises(ValueError, match="form='under' is unknown; choose from inside, outside"):
    srms.SimpleRMSNorm(form="under").apply({}, np.ones((1, 2), np.float32))
