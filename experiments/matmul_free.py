r"""How much does a byte model lose when every weight is -1, 0 or 1 and every activation has 8 bits?

Two layers of MLGRU and a gated linear unit on the sources of the running Python's standard library, all maps of
the layers ternary, against the same layers, norms included, in full precision. The paper finds that the gap
closes with scale, so at this width there should be one, and a small one.

    python -m research.verify matmul_free
    python -m research.sweep --config=matmul_free --metric=eval/loss

cpu: 2 cores, 3 core minutes for its claims: 1 HOLDS, 1 FAILS
smoke: 2 cores, 53 s on a busy machine
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = "Scalable MatMul-free Language Modeling"


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
  config.model.depth = 2 if small else 24
  config.model.width = 64 if small else 1024
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "mlgru.MLGRU"
  config.model.mixer.width = 64 if small else 1024
  config.model.mixer.ternary = True

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "ternary_glu.TernaryGLU"
  config.model.channel.ternary = True

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 4e-3
  config.optim.warmup = {"smoke": 5, "cpu": 40, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 40, "cpu": 400, "paper": 100_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.b2 = 0.98
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 200  # steps

  return config


def arms():
  return {"ternary": {}, "full": {"model.mixer.ternary": False, "model.channel.ternary": False}}


def claims():
  common = dict(paper=PAPER, year=2024, metric="eval/loss", seeds=5, match="parameters")
  return [
      Claim(id="ternary_is_near_full_precision", **common, better="equal", arm="ternary", against="full",
            margin="0.104 nats", paper_value="on par with full-precision Transformers at 2.7B or more (abstract)",
            statement="Ternary maps change the loss of a small byte model by at most 0.15 bits per byte"),
      Claim(id="full_precision_is_still_better", **common, better="lower", arm="full", against="ternary",
            margin="0.005 nats", paper_value="the gap to full-precision Transformers narrows with size (abstract)",
            statement="At this width full precision keeps a lower loss than ternary maps"),
  ]
