r"""How much state does a linear recurrence need before it recalls as attention does?

Multi-query recall of four pairs, two layers. Attention keeps every key and value; linear
attention with one decay per head and step keeps one K x V matrix per head, here with
K = V = 2, 4, 16 or 64 and a single head.

    python -m research.verify recall_state
    python -m research.sweep --config=recall_state --seeds=0:5

cpu: 2 cores, not measured
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = "Simple Linear Attention Language Models Balance the Recall-Throughput Tradeoff"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "recall.MultiQueryRecall"
  config.task.vocab = 32 if small else 8192
  config.task.tokens = 32 if small else 256
  config.task.pairs = 4 if small else 32
  config.task.batch_size = 32 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 2
  config.model.width = 64 if small else 256
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "simple_gla.SimpleGatedLinearAttention"
  config.model.mixer.heads = 1
  config.model.mixer.key_dim = 16
  config.model.mixer.value_dim = 16

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "glu.GLU"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 5e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 10, "cpu": 50, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 60, "cpu": 500, "paper": 50_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 250  # steps

  return config


def arms():
  attention = {"model.mixer.name": "attention.Attention", "model.mixer.head_dim": 32, "model.mixer.heads": 2}
  state = {f"state_{n}": {"model.mixer.key_dim": n, "model.mixer.value_dim": n} for n in (2, 4, 16, 64)}
  return {"attention": attention, **state}
