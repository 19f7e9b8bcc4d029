"""The lasso by its optimality conditions, the tree by what a tree can and cannot tell."""

import numpy as np
import pytest

from research import in_context_fits as fits


def _prompts(seed, P=3, n=12, d=5):
  draw = np.random.default_rng(seed)
  x, w = draw.standard_normal((P, n, d)), draw.standard_normal((P, d)) * [1, 1, 0, 0, 0]
  return x, np.einsum("pnd,pd->pn", x, w)


def test_the_lasso_has_subgradient_zero():
  x, y = _prompts(0)
  w = fits.lasso(x, y, 0.1)
  pull = np.einsum("pnd,pn->pd", x, y - np.einsum("pnd,pd->pn", x, w)) / 12
  assert np.any(w == 0) and np.any(w != 0)
  np.testing.assert_allclose(pull[w != 0], 0.1 * np.sign(w[w != 0]), atol=1e-5)
  assert np.all(np.abs(pull[w == 0]) <= 0.1 + 1e-5)


def test_a_strong_lasso_leaves_nothing():
  assert np.all(fits.lasso(*_prompts(1), 1e3) == 0)


def test_a_tree_without_a_limit_knows_its_pairs_and_one_split_knows_two_means():
  x, y = _prompts(2)
  np.testing.assert_allclose(fits.greedy_tree(x, y, x[:, 4], depth=0), y[:, 4])
  guesses = {fits.greedy_tree(x[:1], y[:1], x[:1, i], depth=1)[0] for i in range(12)}
  assert len(guesses) == 2


def test_nothing_to_fit_is_refused_with_the_numbers():
  with pytest.raises(ValueError, match="strength=0.0 must be above 0"):
    fits.lasso(*_prompts(3), 0.0)
  with pytest.raises(ValueError, match="depth=-1 splits"):
    fits.greedy_tree(*_prompts(3), np.ones((3, 5)), depth=-1)
