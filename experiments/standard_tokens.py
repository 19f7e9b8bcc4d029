r"""Does a softmax layer learn to join x and its y, so that a linear layer behind it can do a gradient step?

Linear regression of 2 inputs, uniform on (-1, 1), from 6 pairs without noise, with x and y as 13 tokens of their own
behind sinusoidal places. Layer 1 is softmax attention over all tokens, layer 2 linear self-attention. A linear layer
alone cannot multiply y_i by x_i, since no token holds both; what layer 1 reads of the token behind an x shows whether
it was taught to copy. The risk is compared with that of one step of the best rate on the same fresh prompts.

    python -m research.verify standard_tokens

cpu: 2 cores, 2 core minutes for its claims: 1 HOLDS, 1 FAILS
smoke: 2 cores, 50 core seconds
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
  config.task.dims = 10 if preset == "paper" else 2
  config.task.pairs = 10 if preset == "paper" else 6
  config.task.coordinates = "uniform"
  config.task.scale = 1.0 if preset == "paper" else 2.0  # input range
  config.task.encoding = "standard"
  config.task.places = 10  # numbers
  config.task.batch_size = 2048 if preset == "paper" else 256  # prompts, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "regressor.Regressor"
  config.model.depth = 2
  config.model.width = 21 if preset == "paper" else 13  # places + dims + 1
  config.model.pattern = ("copier", "mixer")
  config.model.placement = "none"
  config.model.read_out = "minus_last"

  config.model.copier = ml_collections.ConfigDict()
  config.model.copier.name = "attention.Attention"
  config.model.copier.heads = 1
  config.model.copier.head_dim = 20
  config.model.copier.rope_theta = 0.0  # places are in the tokens
  config.model.copier.direction = "bidirectional"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "linear_self_attention.LinearSelfAttention"
  config.model.mixer.form = "four"
  config.model.mixer.keys = "context"
  config.model.mixer.key_dim = 20
  config.model.mixer.value_dim = 20
  config.model.mixer.init_scale = 0.01 if preset == "paper" else 0.1  # variance times inputs

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"  # placed nowhere

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adam"
  config.optim.lr = 1e-3 if preset == "paper" else 5e-3
  config.optim.schedule = "constant" if preset == "paper" else "cosine"
  config.optim.warmup = {"smoke": 10, "cpu": 100, "paper": 0}[preset]  # steps
  config.optim.b1 = 0.9
  config.optim.b2 = 0.98
  config.optim.steps = {"smoke": 30, "cpu": 3000, "paper": 10_000}[preset]
  config.optim.clip = 10.0 if preset == "paper" else 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 100  # steps
  config.train.eval_batches = 4
  config.train.save_every = 3000  # steps

  return config


def arms():
  return {"softmax_first": {}}


def claims():
  common = dict(paper=PAPER, year=2023, seeds=5, kind="threshold", arm="softmax_first")
  return [
      Claim(id="the_first_layer_joins_pairs", **common, metric="copying/label_ratio", better="higher",
            bound="2 times the others'",
            statement="The first layer's output at x_i depends on the token of y_i twice as much as on any other's",
            paper_value="the gradient to the own and the next token, near 0 to others (the copying figure)"),
      Claim(id="standard_tokens_reach_a_step", **common, metric="in_context/excess", better="lower",
            bound="0.1 of the risk",
            statement="Softmax, then linear, on standard tokens has at most 1.1 times the risk of one gradient step",
            paper_value="the losses of both coincide"),
  ]


def measure(program, state):
  return program.task.measure(program, state)
