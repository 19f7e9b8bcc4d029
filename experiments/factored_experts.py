r"""Do the experts of a first layer say where a glyph is, and those of a second layer what it is?

Ten fixed bitmaps, each moved by up to 4 pixels in an image of 24 x 24 with noise, are classified by two layers of 4
experts that are all computed and weighed by a softmax gate. In the first third of the steps an expert pauses while it
has had more than the others. gate_l/position and gate_l/class are the mutual information, in nats, of the gate of layer l with the
quadrant of the move and with the class, over 4096 images.

Departures from the paper: layers are residual with norms, experts are gated linear units on a linear embedding of the
image, and the attention that every layer of this project has adds a linear map of rank 2, as an image is one token.

Set after a pilot of seed 0, claims unchanged: width 24, experts of 8 and noise 0.5, where width 64, experts of 32 and
noise 0.2 left nothing to divide (accuracy 1.000, loss 0.0001).

    python -m research.verify factored_experts
    python -m research.sweep --config=factored_experts --metric=gate_1/position

cpu: 2 cores, 1 core minutes for its claims: 1 HOLDS, 1 FAILS
smoke: 2 cores, 19 CPU seconds for deep
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke")
FAMILY = "experts"
PAPER = "Learning Factored Representations in a Deep Mixture of Experts"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "glyphs.Glyphs"
  config.task.glyphs = 10
  config.task.jitter = 4  # pixels
  config.task.noise = 0.5
  config.task.batch_size = 64  # images, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "classifier.Classifier"
  config.model.depth = 2
  config.model.width = 24
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 1
  config.model.mixer.head_dim = 2
  config.model.mixer.max_tokens = 1

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "moe.MoE"
  config.model.channel.experts = 4
  config.model.channel.hidden = 8

  config.model.channel.router = ml_collections.ConfigDict()
  config.model.channel.router.name = "constrained.Constrained"
  config.model.channel.router.hidden = 32
  config.model.channel.router.margin = 0.5  # batches
  config.model.channel.router.steps = {"smoke": 50, "cpu": 500}[preset]

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 2e-3
  config.optim.warmup = {"smoke": 5, "cpu": 50}[preset]  # steps
  config.optim.steps = {"smoke": 100, "cpu": 1500}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 50  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 1500  # steps

  return config


def arms():
  return {"deep": {}, "free": {"model.channel.router.steps": 0}}


def claims():
  common = dict(paper=PAPER, year=2013, kind="threshold", arm="deep", better="higher", bound="0 nats", seeds=3)
  return [
      Claim(id="first_gate_knows_where", **common, metric="gate_1/position_over_class",
            paper_value="location-dependent experts at the first layer (abstract)",
            statement="The gate of the first layer knows more of where a glyph is than of what it is"),
      Claim(id="second_gate_knows_what", **common, metric="gate_2/class_over_position",
            paper_value="class-specific experts at the second layer (abstract)",
            statement="The gate of the second layer knows more of what a glyph is than of where it is"),
  ]


def measure(program, state):
  return program.task.measure(program, state)
