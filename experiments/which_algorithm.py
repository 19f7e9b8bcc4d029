r"""Which algorithm is it that a decoder learned for noisy linear regression in context?

A softmax decoder of three layers is trained on linear functions of 3 or of 5 inputs with noise of variance 1/4 on y,
and predicts at every point of a prompt from the pairs before it. Its answers are compared with those of ridge
regression of strength 1/4, which is the Bayes answer, of least squares, averaging, one gradient step of the best
rate and three nearest neighbours, and with 0, on the same prompts and position by position; positions count from
d + 2 pairs on, where the risk of least squares is finite. Being nearer to ridge than to least squares alone would say
little: the answer 0 is, because ridge shrinks.

    python -m research.verify which_algorithm

The verify also draws figures/in-context-risk-<arm>.png, the risk by position between those of algorithms. Beside the
claims a run leaves the weights that its answers imply and what linear read-outs find of X^T y and w in its layers.

cpu: 2 cores, 17 core minutes for its claims: 2 HOLDS
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "in_context"
PAPER = "What learning algorithm is in-context learning? Investigations with linear models"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "function_classes.FunctionClasses"
  config.task.dims = 3 if small else 8
  config.task.pairs = 9 if small else 40
  config.task.family = "linear"
  config.task.noise = 0.25  # variance
  config.task.batch_size = 64  # prompts, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "regressor.Regressor"
  config.model.depth = 3 if small else 16
  config.model.width = 64 if small else 512
  config.model.placement = "pre"
  config.model.read_in = "dense"
  config.model.read_out = "every_other"
  config.model.max_positions = 41 if small else 161  # covers twice the pairs

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 4
  config.model.mixer.head_dim = 16 if small else 128
  config.model.mixer.rope_theta = 0.0

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "mlp.MLP"
  config.model.channel.activation = "gelu"
  config.model.channel.bias = True

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "layer_norm.LayerNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adam"
  config.optim.lr = 2e-3 if small else 1e-4
  config.optim.schedule = "cosine"
  config.optim.warmup = {"smoke": 4, "cpu": 400, "paper": 100_000}[preset]  # steps
  config.optim.steps = {"smoke": 40, "cpu": 6000, "paper": 500_000}[preset]

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 100 if small else 1000  # steps
  config.train.eval_batches = 16
  config.train.save_every = 2000  # steps

  return config


def arms():
  return {
      "three": {},
      "five": {"task.dims": 5, "task.pairs": 10, "optim.lr": 1e-3},
  }


def claims():
  common = dict(paper=PAPER, year=2023, seeds=2, kind="threshold", metric="spd/ridge_over_others", better="lower",
                bound="1 of the next")
  return [
      Claim(id="three_inputs_are_regressed_as_by_ridge", **common, arm="three",
            statement="At 5 to 9 pairs of 3 inputs a decoder answers like ridge rather than like five others",
            paper_value="with noise, predictions follow ridge of the Bayes strength; one earlier run at this scale: "
                        "1.5 to 2.4 times nearer than to least squares at 7 to 9 pairs"),
      Claim(id="five_inputs_are_regressed_as_by_ridge", **common, arm="five",
            statement="At 7 to 10 pairs of 5 inputs a decoder answers like ridge rather than like five others",
            paper_value="with noise, predictions follow ridge of the Bayes strength; one earlier run at this scale: "
                        "nearer than to least squares wherever the two differ"),
  ]


def measure(program, state):
  return program.task.measure(program, state)
