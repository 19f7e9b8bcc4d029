r"""Do tied input and output embeddings lower the loss at equal parameters?

Byte-level text from the sources of the running Python's standard library, four layers of
softmax attention. What tying saves is spent on wider channel mixers.

    python -m research.verify tied
    python -m research.sweep --config=tied --match=parameters:model.channel.hidden --dry_run

cpu: 2 cores, 6 minutes for its claim on a busy machine: FAILS
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "norms"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.tokens = 128 if small else 2048
  config.task.batch_size = 8 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 4 if small else 24
  config.model.width = 64 if small else 1024
  config.model.placement = "pre"
  config.model.tied = False

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 2 if small else 16
  config.model.mixer.head_dim = 32 if small else 64
  config.model.mixer.max_tokens = 128 if small else 2048

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "glu.GLU"
  config.model.channel.hidden = 168 if small else 2736

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 4e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 5, "cpu": 40, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 40, "cpu": 400, "paper": 100_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.b2 = 0.98
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 200  # steps

  return config


def arms():
  return {"untied": {}, "tied": {"model.tied": True, "model.channel.hidden": 192}}


def claims():
  return [
      Claim(id="tied_embeddings_lower_loss", paper="Using the Output Embedding to Improve Language Models", year=2017,
            statement="Tying the output to the input embedding lowers the loss at equal parameters",
            metric="eval/loss", better="lower", arm="tied", against="untied", margin="0.005 nats", seeds=5,
            match="parameters", paper_value="tying lowers word-level perplexity with fewer parameters"),
  ]
