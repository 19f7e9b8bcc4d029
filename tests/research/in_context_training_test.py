"""Models trained side by side: the same as alone, better than at the start, refused where they make no sense."""

import functools

import jax
import numpy as np
import pytest

from layers.in_context import closed_forms
from layers.in_context.linear_self_attention import LinearSelfAttention
from research import in_context_training as training
from research.in_context_training import Settings

LAYER = LinearSelfAttention(form="gd", init_scale=0.1)
train = functools.partial(training.train, LAYER, d=2, n=4, batch=64)


@functools.cache
def _three():
  return train(Settings(seed=np.array([0, 1, 1]), lr=0.05, noise=np.array([0.0, 0.0, 2.0])), steps=60)


def test_models_side_by_side_are_the_models_alone():
  alone = train(Settings(seed=1, lr=0.05, noise=2.0), steps=60)
  together = jax.tree.map(lambda p: p[2], _three().params)
  np.testing.assert_allclose(together["eta"], alone.params["eta"][0], rtol=1e-4)
  np.testing.assert_allclose(_three().loss_MS[2], alone.loss_MS[0], rtol=1e-4)


def test_seeds_and_noise_are_arrays_that_matter():
  eta = np.asarray(_three().params["eta"])
  assert eta[0] != eta[1] != eta[2] and _three().loss_MS.shape == (3, 60)


def test_the_one_scalar_comes_to_the_best_rate():
  best = [closed_forms.one_step_rate(4, 2, noise) for noise in (0.0, 0.0, 2.0)]
  np.testing.assert_allclose(_three().params["eta"], best, atol=0.08)


@pytest.mark.parametrize("settings, fields, match", [
    (Settings(seed=0), dict(steps=0), "steps=0 and batch=64 must all be at least 1"),
    (Settings(seed=0, noise=-1.0), dict(steps=1), "noise=-1 must be finite and at least 0"),
    (Settings(seed=np.arange(2), lr=np.ones(3)), dict(steps=1), r"seed of shape \(2,\) must be a number or have one entry"),
])
def test_what_cannot_be_trained_is_refused_with_the_numbers(settings, fields, match):
  with pytest.raises(ValueError, match=match):
    train(settings, **fields)
