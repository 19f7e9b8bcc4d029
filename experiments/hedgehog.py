r"""Do learned spiky feature maps let linear attention recall as softmax does, where elu + 1 cannot?

Recall of eight pairs by two layers without a channel mixer: linear attention divided by its sum of scores, after
short convolutions, with the features hedgehog (trained from scratch), taylor, or elu + 1, 16 channels wide; or softmax
attention with rotary positions and no convolutions. The entropy is that of what a token reads, in nats, mean over the
layers: either of them may do the work. The smaller, the spikier.

    python -m research.verify hedgehog

cpu: 2 cores, 2 core minutes for each of its claims: 1 HOLDS, 2 INCONCLUSIVE
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = "The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "recall.MultiQueryRecall"
  config.task.vocab = 32 if small else 8192
  config.task.tokens = 32 if small else 256
  config.task.pairs = 8 if small else 32
  config.task.batch_size = 64 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 2
  config.model.width = 64 if small else 256
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "linear_attention.LinearAttention"
  config.model.mixer.feature_map = "hedgehog"
  config.model.mixer.heads = 1 if small else 4
  config.model.mixer.key_dim = 16 if small else 64
  config.model.mixer.value_dim = 64
  config.model.mixer.conv = 4  # tokens

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "none"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 6, "cpu": 60, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 60, "cpu": 600, "paper": 50_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.diagnostics = True
  config.train.save_every = 600  # steps

  return config


def arms():
  softmax = {"model.mixer.name": "attention.Attention", "model.mixer.head_dim": 64, "model.mixer.max_tokens": 32}
  return {"hedgehog": {}, "elu1": {"model.mixer.feature_map": "elu1"}, "taylor": {"model.mixer.feature_map": "taylor"},
          "softmax": softmax}


def claims():
  common = dict(paper=PAPER, year=2024, seeds=3, arm="hedgehog")
  recall = dict(common, metric="eval/accuracy")
  return [
      Claim(id="hedgehog_recalls_more_than_elu", **recall, better="higher", against="elu1", margin="0.05 accuracy",
            statement="Trained from scratch, Hedgehog's features recall more than elu + 1",
            paper_value="up to 6 perplexity points better than prior linear attentions (abstract)"),
      Claim(id="hedgehog_recalls_as_softmax", **recall, better="equal", against="softmax", margin="0.02 accuracy",
            statement="Trained from scratch, linear attention with Hedgehog's features recalls as softmax does",
            paper_value="recovers over 99 % of standard Transformer quality (abstract)"),
      Claim(id="hedgehog_attends_spikily", **common, metric="depth/attention_entropy/mean", better="lower",
            against="elu1", margin="0.2 nats",
            statement="What a token reads through Hedgehog's features has a lower entropy than through elu + 1",
            paper_value="low-entropy weights as softmax has them; prior feature maps lack them"),
  ]
