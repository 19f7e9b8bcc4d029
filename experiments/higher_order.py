r"""Do the layers of a decoder that learned linear regression in context follow Newton's iterations?

A softmax decoder of three layers is trained on linear functions of 3 inputs, with noise of variance 1/4 (the paper's
main runs have none) and a prediction at each of 10 points. From the residual stream after every layer a linear
read-out, shared by all positions and fitted in closed form, predicts f; its residuals are compared with those of k
gradient steps and of k Newton iterations, and the k whose residuals are most alike is the index of the layer. Point
1 is left out: nobody knows anything there.

    python -m research.verify higher_order

The verify also draws figures/in-context-layers-<arm>.png, likeness by layer and k, and in-context-risk-<arm>.png.

cpu: 2 cores, 13 core minutes for its claims: 2 HOLDS
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "in_context"
PAPER = ("Transformers Learn Higher-Order Optimization Methods for In-Context Learning: "
         "A Study with Linear Models")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "function_classes.FunctionClasses"
  config.task.dims = 3 if small else 20
  config.task.pairs = 9 if small else 40
  config.task.family = "linear"
  config.task.noise = 0.25 if small else 0.0  # variance
  config.task.dims_start = 0 if small else 5
  config.task.points_start = 0 if small else 11
  config.task.grow_every = 2000  # steps
  config.task.batch_size = 64  # prompts, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "regressor.Regressor"
  config.model.depth = 3 if small else 12
  config.model.width = 64 if small else 256
  config.model.placement = "pre"
  config.model.read_in = "dense"
  config.model.read_out = "every_other"
  config.model.max_positions = 37 if small else 161  # covers twice the pairs

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 4 if small else 8
  config.model.mixer.head_dim = 16 if small else 32
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
  config.optim.schedule = "cosine" if small else "constant"
  config.optim.warmup = {"smoke": 4, "cpu": 400, "paper": 0}[preset]  # steps
  config.optim.steps = {"smoke": 40, "cpu": 6000, "paper": 500_000}[preset]

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 100 if small else 1000  # steps
  config.train.eval_batches = 16
  config.train.save_every = 2000  # steps

  return config


def arms():
  return {"decoder": {}}


def claims():
  common = dict(paper=PAPER, year=2024, seeds=3, kind="threshold", arm="decoder", better="higher")
  return [
      Claim(id="newton_iterations_rise_by_layer", **common, metric="match/newton_rise", bound="0.5 iterations",
            statement="From each layer to the next the number of Newton iterations that it is most like increases",
            paper_value="middle layers each advance about 3 iterations; one earlier run at this scale: 0, 3, 6"),
      Claim(id="gradient_steps_multiply_by_layer", **common, metric="match/gd_doublings", bound="0.5 doublings",
            statement="From each layer to the next the number of gradient steps that it is most like at least doubles",
            paper_value="steps matched grow exponentially with depth; one earlier run at this scale: 1, 16, 64"),
  ]


def measure(program, state):
  return program.task.measure(program, state)
