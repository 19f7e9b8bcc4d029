r"""How much recall does a byte of state buy, in eight token mixers?

Recall of eight pairs by two layers without a channel mixer: softmax attention, which keeps every key and value, or a
recurrence with short convolutions and one head of K x 64 numbers of state. The number behind a name is K; unit and
elu are linear attention, on unit keys with its output normalised and on elu + 1 with a denominator; based is
Taylor features of 4 channels, 21 wide. Attention has rotary positions and no convolutions.

    python -m research.verify zoology
    python -m research.sweep --config=zoology --seeds=0:3 --metric=eval/accuracy

The sweep runs all arms and draws figures/frontier-eval-accuracy.png, accuracy against bytes of state.

cpu: 2 cores, 7 core minutes for its claims: 2 HOLDS, 2 INCONCLUSIVE
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = "Zoology: Measuring and Improving Recall in Efficient Language Models"
FRONTIER = {"eval/accuracy": ("count/state_bytes",)}


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "recall.MultiQueryRecall"
  config.task.vocab = 32 if small else 8192
  config.task.tokens = 32 if small else 256
  config.task.pairs = 8 if small else 64
  config.task.batch_size = 64 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 2
  config.model.width = 64 if small else 256
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "linear_attention.LinearAttention"
  config.model.mixer.feature_map = "l2"
  config.model.mixer.denominator = False
  config.model.mixer.output_norm = True
  config.model.mixer.heads = 1
  config.model.mixer.key_dim = 16
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
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 600  # steps

  return config


def arms():
  divided = {"model.mixer.denominator": True, "model.mixer.output_norm": False}
  return {
      "unit_16": {},
      "unit_2": {"model.mixer.key_dim": 2},
      "unit_6": {"model.mixer.key_dim": 6},
      "elu_16": {"model.mixer.feature_map": "elu1"} | divided,
      "based_4": {"model.mixer.feature_map": "taylor", "model.mixer.key_dim": 4} | divided,
      "attention": {"model.mixer.name": "attention.Attention", "model.mixer.head_dim": 64,
                    "model.mixer.max_tokens": 32},
      "simple_gla_16": {"model.mixer.name": "simple_gla.SimpleGatedLinearAttention"},
      "gla_16": {"model.mixer.name": "gla.GLA"},
      "mamba2_16": {"model.mixer.name": "mamba2.Mamba2"},
      "delta_16": {"model.mixer.name": "delta_net.DeltaNet"},
      "gated_delta_16": {"model.mixer.name": "gated_delta_net.GatedDeltaNet"},
  }


def claims():
  common = dict(paper=PAPER, year=2023, metric="eval/accuracy", better="higher", seeds=5)
  return [
      Claim(id="attention_recalls_more_than_elu", **common, arm="attention", against="elu_16", margin="0.05 accuracy",
            statement="Attention recalls more than linear attention on elu + 1, whose state is the smaller",
            paper_value="82 % of the perplexity gap to attention is recall (abstract)"),
      Claim(id="unit_keys_recall_more_than_elu", **common, arm="unit_16", against="elu_16", margin="0.05 accuracy",
            statement="Linear attention recalls more on unit keys, its output normalised, than on elu + 1, divided",
            paper_value="recall depends on the feature map as well as on the state's size"),
      Claim(id="taylor_features_recall_more_than_elu", **common, arm="based_4", against="elu_16", margin="0.05 accuracy",
            statement="Taylor features of four channels recall more than elu + 1 on sixteen",
            paper_value="Based's feature map recalls more than earlier ones"),
      Claim(id="recall_grows_with_the_state", **common, kind="monotone", arms=("unit_2", "unit_6", "unit_16"),
            margin="0.02 accuracy", statement="Linear attention on unit keys recalls more with each larger key width",
            paper_value="recall of fixed-state models grows with their state (qualitative)"),
  ]
