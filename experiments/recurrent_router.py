r"""Does a router that remembers how the layers below routed a token make a better mixture of experts?

A byte-level language model of four layers with 8 experts, 2 per token, balance loss at weight 0.01. "recurrent" routes
by a recurrence over depth of width 32, "linear" by a softmax of a linear map. At this scale the sign is not known
beforehand: in a trial of two seeds the recurrence was 0.03 nats better in one and 0.04 worse in the other. The
difference of five seeds is reported with its interval, INCONCLUSIVE is an answer, and nothing else depends on it.

    python -m research.verify recurrent_router
    python -m research.sweep --config=recurrent_router --metric=eval/loss

cpu: 2 cores, 3 core minutes for its claims: 1 FAILS
smoke: 2 cores, 30 CPU seconds for recurrent
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "experts"
PAPER = "Layerwise Recurrent Router for Mixture-of-Experts"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.path = ""
  config.task.data_dir = ""
  config.task.tokens = 64 if small else 1024
  config.task.batch_size = 8 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 4 if small else 24
  config.model.width = 48 if small else 768
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 3 if small else 12
  config.model.mixer.head_dim = 16 if small else 64
  config.model.mixer.max_tokens = 64 if small else 1024

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "moe.MoE"
  config.model.channel.experts = 8 if small else 16
  config.model.channel.hidden = 32 if small else 512
  config.model.channel.dispatch = "dense" if small else "dropless"

  config.model.channel.router = ml_collections.ConfigDict()
  config.model.channel.router.name = "recurrent.Recurrent"
  config.model.channel.router.top_k = 2 if small else 4
  config.model.channel.router.state_dim = 32 if small else 256
  config.model.channel.router.balance_weight = 0.01

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 4e-4
  config.optim.warmup = {"smoke": 5, "cpu": 30, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 30, "cpu": 300, "paper": 50_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 300  # steps

  return config


def arms():
  plain = {"model.channel.router.top_k": 2, "model.channel.router.slots": 2, "model.channel.router.balance_weight": 0.01}
  return {"recurrent": {}, "linear": {"model.channel.router.name": "gshard.GShard", **plain}}


def claims():
  return [
      Claim(id="recurrence_lowers_loss", paper=PAPER, year=2024, metric="eval/loss", arm="recurrent", against="linear",
            better="lower", margin="0.01 nats", seeds=5, paper_value="consistently better than other routers (abstract)",
            statement="Routing by a recurrence over depth lowers the language model's loss"),
  ]
