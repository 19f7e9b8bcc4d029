r"""How many pairs can a mixer of a given state recall when they are asked for later in the row?

Multi-query associative recall on the device: keys and values first, then queries
at distances that favour the near past. Attention keeps every pair; a recurrence has
K x V numbers per head to keep them in.

    python -m research.run --config=experiments/recall.py:cpu
    python -m research.run --config=experiments/recall.py:cpu --config.model.mixer.name=attention.Attention

cpu: 2 cores, 70 s: accuracy 0.988
smoke: 2 cores, 20 s
paper: one H100 or v5e-8, not measured
"""

import ml_collections

PRESETS = ("cpu", "smoke", "paper")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = {"smoke": True, "cpu": True, "paper": False}[preset]

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "recall.MultiQueryRecall"
  config.task.vocab = 64 if small else 8192
  config.task.tokens = 32 if small else 256
  config.task.pairs = 4 if small else 32
  config.task.batch_size = 64 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 2
  config.model.width = 64 if small else 256
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "simple_gla.SimpleGatedLinearAttention"
  config.model.mixer.heads = 2 if small else 4

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "glu.GLU"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 10, "cpu": 50, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 60, "cpu": 600, "paper": 50_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 200  # steps
  config.train.eval_batches = 8
  config.train.save_every = 200  # steps

  return config
