r"""How much state does a linear recurrence need before it recalls as attention does?

Multi-query recall of four pairs by two layers. The first is attention over a window of two tokens, the
same in all arms: it joins a key and its value and can remember nothing. The second is what is
compared: softmax attention, which keeps every key and value, or linear attention with one learned decay
per step and short convolutions, which keeps one matrix of K x V numbers, here with K = V = 4, 16 or 64.
plain_64 has the largest state and no convolutions.

    python -m research.verify recall_state
    python -m research.sweep --config=recall_state --seeds=0:5 --metric=eval/accuracy

cpu: 2 cores, 8 minutes for its claims on a busy machine: 1 HOLDS, 3 INCONCLUSIVE
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

  config.model.pattern = ("local", "mixer")

  config.model.local = ml_collections.ConfigDict()
  config.model.local.name = "attention.Attention"
  config.model.local.heads = 2 if small else 4
  config.model.local.head_dim = 32 if small else 64
  config.model.local.window = 2
  config.model.local.max_tokens = 2

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
  config.optim.lr = 3e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 10, "cpu": 50, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 60, "cpu": 600, "paper": 50_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 300  # steps

  return config


def arms():
  attention = {"model.mixer.name": "attention.Attention", "model.mixer.head_dim": 64, "model.mixer.heads": 1,
               "model.mixer.max_tokens": 32}
  state = {f"state_{n}": {"model.mixer.key_dim": n, "model.mixer.value_dim": n} for n in (4, 16, 64)}
  return {"attention": attention, **state, "plain_64": state["state_64"] | {"model.mixer.conv": 0}}


def claims():
  common = dict(paper=PAPER, year=2024, metric="eval/accuracy", seeds=5)
  return [
      Claim(id="small_state_recalls_less", **common, better="higher", arm="attention", against="state_4",
            statement="Attention recalls more than linear attention with a state of 4 x 4 numbers",
            margin="0.1 accuracy", paper_value="recall grows with the state; only attention solves all sizes"),
      Claim(id="large_state_recalls_as_attention", **common, better="equal", arm="state_64", against="attention",
            statement="Linear attention with a state of 64 x 64 numbers recalls as attention does",
            margin="0.05 accuracy", paper_value="large states close the gap"),
      Claim(id="recall_grows_with_state", **common, better="higher", kind="monotone",
            arms=("state_4", "state_16", "state_64"), margin="0.02 accuracy",
            statement="Each larger state, 4 to 16 to 64, recalls more", paper_value="accuracy rises with state size"),
      Claim(id="recall_needs_convolutions", **common, better="higher", arm="state_64", against="plain_64",
            statement="Short convolutions help linear attention to recall, at the same state",
            margin="0.1 accuracy", paper_value="its linear attention is used together with short convolutions"),
  ]
