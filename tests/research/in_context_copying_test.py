"""What is measured of a model on standard tokens, on one whose measures are known: the two layers written down."""

import jax
import jax.numpy as jnp
import numpy as np

from layers.in_context import closed_forms, standard_tokens
from research import config as configs
from research import in_context_copying as copying
from research import program as programs


def test_two_layers_written_down_are_the_best_step_and_copy(monkeypatch):
  monkeypatch.setattr(copying, "PROMPTS", 512)
  monkeypatch.setattr(copying, "SEEN", 2)
  config = configs.load("standard_tokens:smoke")[2]
  configs.override(config, {"model.mixer.key_dim": 0, "model.mixer.value_dim": 0})  # those of a constructed step
  program = programs.make(config)
  eta = closed_forms.one_step_rate(6, 2, 0.0, 1 / 3, 1.8)  # U(-1, 1): variance and kurtosis
  params = jax.tree.map(jnp.float32, standard_tokens.parameters(2, 6, eta))
  found = program.task.measure(program, program.init(0).replace(params=params))
  assert abs(found["in_context/excess"]) < 1e-4 and found["in_context/sensitivity_cosine"] > 1 - 1e-6
  assert found["in_context/prediction_difference"] < 1e-4
  np.testing.assert_allclose([found["copying/own"], found["copying/label"]], [13**0.5, 1.0], rtol=1e-4)
  assert found["copying/others"] < 1e-4 and found["copying/input_ratio"] < 1.0
