r"""Is a trained linear self-attention layer gradient descent, and are two of them GD++?

Linear regression of 10 inputs, uniform on (-1/2, 1/2), from 10 pairs without noise. One layer is compared with one
step of the best rate on the same fresh prompts; two layers of shared weights with two steps; and the two scalars
of GD++ with the one of gradient descent. Constructed layers are compared with the algorithms that they are.

    python -m research.verify gd_by_attention

cpu: 2 cores, 4 core minutes for its claims: 6 HOLDS
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "in_context"
PAPER = "Transformers learn in-context by gradient descent"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "in_context.InContextRegression"
  config.task.dims = 10
  config.task.pairs = 10
  config.task.coordinates = "uniform"
  config.task.scale = 1.0  # the paper's input range
  config.task.batch_size = 2048 if preset == "paper" else 512  # prompts, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "regressor.Regressor"
  config.model.depth = 1
  config.model.width = 11  # dims + 1
  config.model.placement = "none"
  config.model.read_out = "minus_last"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "linear_self_attention.LinearSelfAttention"
  config.model.mixer.form = "four"
  config.model.mixer.keys = "context"
  config.model.mixer.steps = 1
  config.model.mixer.init_scale = 0.002  # variance times inputs

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"  # placed nowhere

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adam"
  config.optim.lr = 1e-3 if preset == "paper" else 3e-3
  config.optim.schedule = "constant" if preset == "paper" else "cosine"
  config.optim.b1 = 0.9
  config.optim.b2 = 0.98
  config.optim.steps = {"smoke": 30, "cpu": 1500, "paper": 5000}[preset]
  config.optim.clip = 1e-3 if preset == "paper" else 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 50  # steps
  config.train.eval_batches = 4
  config.train.save_every = 1500  # steps

  return config


def arms():
  scalars = {"model.mixer.steps": 2, "model.mixer.init_scale": 1.0, "optim.lr": 0.05}
  return {
      "one_layer": {},
      "two_layers": {"model.mixer.steps": 2, "model.mixer.init_scale": 0.02},
      "gd": scalars | {"model.mixer.form": "gd"},
      "gd_plus_plus": scalars | {"model.mixer.form": "gd++"},
      "constructed": {"optim.steps": 1},
  }


def claims():
  common = dict(paper=PAPER, year=2023, seeds=5)
  exact = dict(**common, kind="exact", arm="constructed", better="lower", bound="1e-6 absolute error")
  one = dict(**common, kind="threshold", arm="one_layer")
  return [
      Claim(id="constructed_layers_are_gd", **exact, metric="construction/gd_error",
            statement="1 to 10 layers with constructed weights predict what 1 to 10 steps of gradient descent do",
            paper_value="Proposition 1"),
      Claim(id="constructed_layers_are_gd_plus_plus", **exact, metric="construction/gd_plus_plus_error",
            statement="1 to 10 layers with constructed weights predict what 1 to 10 steps of GD++ do",
            paper_value="Section 3 and its appendix (recursion of the published code)"),
      Claim(id="one_layer_is_as_good_as_a_step", **one, metric="in_context/excess", better="lower",
            bound="0.01 of the risk", statement="A trained layer's risk is within 1 % of that of the best gradient step",
            paper_value="the two losses are the same (Figure 2)"),
      Claim(id="one_layer_has_the_sensitivity_of_a_step", **one, metric="in_context/sensitivity_cosine", better="higher",
            bound="0.995 cosine", statement="A trained layer and the best gradient step have the same gradient in the query",
            paper_value="cosine tends to 1 (Figure 2)"),
      Claim(id="gd_plus_plus_beats_gd", **common, metric="eval/risk", better="lower", arm="gd_plus_plus", against="gd",
            margin="25 %", statement="At depth 2, GD++ of shared scalars has a risk 25 % below that of gradient descent",
            paper_value="half of 0.2212 against half of 0.3136, from the two recursions"),
      Claim(id="two_layers_beat_two_steps", **common, kind="threshold", metric="in_context/excess", better="lower",
            arm="two_layers", bound="-0.2 of the risk",
            statement="Two trained layers of shared weights have a risk 20 % below that of two gradient steps",
            paper_value="two layers outperform two steps and equal GD++ (Figure 3)"),
  ]


def measure(program, state):
  return program.task.measure(program, state)
