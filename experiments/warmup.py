r"""Does a deep post-norm transformer need learning-rate warm-up, and a pre-norm one not?

Twelve layers of softmax attention on real text, byte by byte; every arm at one peak learning
rate, with a linear warm-up over a quarter of the steps or with none at all.

    python -m research.verify warmup
    python -m research.run --config=experiments/warmup.py --config.model.placement=post

cpu: 2 cores, 9 minutes for its claims on a busy machine: both HOLD
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "norms"
PAPER = "On Layer Normalization in the Transformer Architecture"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.tokens = 64 if small else 1024
  config.task.batch_size = 16 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 12
  config.model.width = 32 if small else 768
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 2 if small else 12
  config.model.mixer.head_dim = 16 if small else 64
  config.model.mixer.max_tokens = 64 if small else 1024

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "mlp.MLP"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "layer_norm.LayerNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 1e-3
  config.optim.schedule = "cosine"
  config.optim.warmup = {"smoke": 10, "cpu": 100, "paper": 4000}[preset]  # steps
  config.optim.steps = {"smoke": 40, "cpu": 400, "paper": 40_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.b2 = 0.98
  config.optim.weight_decay = 0.0
  config.optim.clip = 0.0  # the paper trains without

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 200  # steps

  return config


def arms():
  no = {"optim.warmup": 0}
  post = {"model.placement": "post"}
  return {"pre_warm": {}, "pre_cold": no, "post_warm": post, "post_cold": post | no}


def claims():
  common = dict(paper=PAPER, year=2020, metric="eval/loss", seeds=5)
  return [
      Claim(id="post_norm_needs_warmup", **common, better="lower", arm="post_warm", against="post_cold",
            statement="Learning-rate warm-up lowers the loss of a 12-layer post-norm transformer",
            margin="0.05 nats", paper_value="Post-LN trained by Adam without warm-up ends far below the one with it (translation)"),
      Claim(id="pre_norm_needs_no_warmup", **common, better="equal", arm="pre_cold", against="pre_warm",
            statement="A 12-layer pre-norm transformer ends at the same loss without warm-up",
            margin="0.05 nats", paper_value="Pre-LN without warm-up is as good as with it"),
  ]
