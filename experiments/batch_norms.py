r"""Do norms with statistics of the batch serve a language model as well as LayerNorm?

Four layers of softmax attention on real text, byte by byte. In training a batch norm sees the future through its
statistics, so what is compared is the loss in evaluation. PRepBN has a multiple of the identity beside its norm;
shortcut_ln is LayerNorm with such a multiple, and shows whether that alone is what helps.

    python -m research.verify batch_norms
    python -m research.run --config=experiments/batch_norms.py --config.model.norm.name=power_norm.PowerNorm

cpu: 2 cores, 5 core minutes for its claims: 4 HOLDS, 2 INCONCLUSIVE
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "norms"
POWER = "PowerNorm: Rethinking Batch Normalization in Transformers"
SLAB = ("SLAB: Efficient Transformers with Simplified Linear Attention and "
        "Progressive Re-parameterized Batch Normalization")
PAPER = POWER


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.tokens = 48 if small else 1024
  config.task.batch_size = 8 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 4 if small else 12
  config.model.width = 32 if small else 768
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 2 if small else 12
  config.model.mixer.head_dim = 16 if small else 64
  config.model.mixer.max_tokens = 48 if small else 1024

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "mlp.MLP"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "layer_norm.LayerNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adam"
  config.optim.lr = 3e-3 if small else 3e-4
  config.optim.warmup = {"smoke": 5, "cpu": 50, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 40, "cpu": 600, "paper": 20_000}[preset]
  config.optim.final = 0.1  # of lr
  config.optim.b2 = 0.98
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 600  # steps

  return config


def arms():
  return {
      "ln": {},
      "shortcut_ln": {"model.norm.name": "layer_norm.ShortcutLayerNorm"},
      "bn": {"model.norm.name": "batch_norm.BatchNorm"},
      "power": {"model.norm.name": "power_norm.PowerNorm", "model.norm.warmup": 200},  # steps
      "power_v": {"model.norm.name": "power_norm.PowerNorm", "model.norm.warmup": 200, "model.norm.groups": 0},
      "prepbn": {"model.norm.name": "prepbn.PRepBN", "model.norm.total": 300},  # steps of the change
  }


def claims():
  power = dict(paper=POWER, year=2020, metric="eval/loss", seeds=5)
  slab = dict(paper=SLAB, year=2024, metric="eval/loss", better="lower", arm="prepbn", seeds=5)
  return [
      Claim(id="power_norm_beats_bn", **power, better="lower", arm="power", against="bn", margin="0.02 nats",
            statement="PowerNorm ends at a lower loss than BatchNorm",
            paper_value="BN is clearly worse than PN on IWSLT14, WMT14, PTB and WikiText-103"),
      Claim(id="power_norm_is_as_good_as_ln", **power, better="equal", arm="power", against="ln", margin="0.1 nats",
            statement="PowerNorm ends within 0.1 nats of LayerNorm",
            paper_value="0.4 to 0.6 BLEU and 3.0 to 5.6 of perplexity better than LN"),
      Claim(id="scaling_groups_helps_power_norm", **power, better="lower", arm="power", against="power_v", margin="0.02 nats",
            statement="Scaling each position first lowers the loss of PowerNorm", paper_value="PN is better than PN-V (ablation, unverified digits)"),
      Claim(id="prepbn_beats_bn", **slab, against="bn", margin="0.05 nats",
            statement="PRepBN ends at a lower loss than BatchNorm from the start",
            paper_value="73.6 % of DeiT-T with PRepBN; plain BN is worse (unverified digits)"),
      Claim(id="prepbn_beats_ln", **slab, against="ln", margin="0.02 nats",
            statement="PRepBN ends at a lower loss than LayerNorm", paper_value="DeiT-T 73.6 % against 72.2 % of LN (the latter unverified)"),
      Claim(id="prepbn_beats_its_control", **slab, against="shortcut_ln", margin="0.02 nats",
            statement="PRepBN ends at a lower loss than LayerNorm with the same shortcut", paper_value="not reported"),
  ]
