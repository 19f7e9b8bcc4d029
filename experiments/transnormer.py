r"""Is linear attention better off with a norm on what it read than divided by its scores, and local at first?

Byte-level text from the sources of the running Python's standard library, four layers. transnormer
attends within blocks of 16 tokens in its first two layers and linearly over the whole row, with a norm, in
the last two; norm does the latter everywhere, divide has the sum of scores as denominator instead.
norm_fast and divide_fast learn ten times as fast. copy_norm and copy_divide copy eight tokens over
256, and after 100 steps the gradients of their layers are compared. That a score of size s makes the
quotient as steep as 1 / s, and the norm never steeper than its eps allows, is a law of
tests/layers/mixers/norm_attention_test.py; here the question is whether training meets it.

    python -m research.verify transnormer
    python -m research.sweep --config=transnormer --seeds=0:5

cpu: 2 cores, 12 core minutes for its claims: 1 HOLDS, 1 FAILS, 2 INCONCLUSIVE
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = "The Devil in Linear Transformer"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.tokens = 128 if small else 512
  config.task.batch_size = 8 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 4 if small else 12
  config.model.width = 64 if small else 768
  config.model.placement = "pre"
  config.model.pattern = ("local",) * (2 if small else 6) + ("mixer",) * (2 if small else 6)

  config.model.local = ml_collections.ConfigDict()
  config.model.local.name = "diag_attention.DiagAttention"
  config.model.local.heads = 2 if small else 12
  config.model.local.head_dim = 32 if small else 64
  config.model.local.block = 16 if small else 64  # tokens

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "norm_attention.NormAttention"
  config.model.mixer.heads = 2 if small else 12
  config.model.mixer.key_dim = 32 if small else 64
  config.model.mixer.value_dim = 32 if small else 64

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "glu.GLU"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "simple_rms_norm.SimpleRMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 5e-4
  config.optim.warmup = {"smoke": 5, "cpu": 30, "paper": 4000}[preset]  # steps
  config.optim.steps = {"smoke": 30, "cpu": 300, "paper": 50_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.b2 = 0.98
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 10  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 300  # steps

  return config


def arms():
  norm = {"model.pattern": ("mixer",)}
  divide = norm | {"model.mixer.name": "linear_attention.LinearAttention"}
  fast = {"optim.lr": 3e-2}
  copy = {"task.name": "selective_copy.SelectiveCopy", "task.tokens": 256, "task.items": 8, "task.scattered": False,
          "model.depth": 2, "optim.steps": 100, "optim.clip": 0.0, "train.diagnostics": True}
  return {
      "transnormer": {},
      "norm": norm,
      "divide": divide,
      "norm_fast": norm | fast,
      "divide_fast": divide | fast,
      "copy_norm": norm | copy,
      "copy_divide": divide | copy,
  }


def claims():
  common = dict(paper=PAPER, year=2022, metric="eval/loss", better="lower", seeds=5)
  return [
      Claim(id="norm_has_smaller_gradients", **(common | {"metric": "depth/gradient_norm/max", "better": "higher"}),
            kind="ratio", arm="copy_divide", against="copy_norm", bound="3 times",
            statement="While it learns to copy, the layer with the largest gradient has one 3 times as large with "
                      "a denominator as with a norm",
            paper_value="gradients of the quotient are unbounded, those of the norm bounded (section 3.2, unverified)"),
      Claim(id="norm_learns_fast", **common, arm="norm_fast", against="divide_fast", margin="0.1 nats",
            statement="At ten times the learning rate linear attention with a norm ends lower than with a denominator",
            paper_value="the norm makes training stable (section 4, unverified)"),
      Claim(id="norm_beats_denominator", **common, arm="norm", against="divide", margin="0 nats",
            statement="A norm instead of the denominator lowers the loss",
            paper_value="better than linear attention with a denominator on WikiText-103 (abstract)"),
      Claim(id="local_layers_first_help", **common, arm="transnormer", against="norm", margin="0.02 nats",
            statement="Attention within blocks in the first half of the layers lowers the loss",
            paper_value="linear attention is diluted over the row; blocks in early layers cure it (section 3.3, unverified)"),
  ]
