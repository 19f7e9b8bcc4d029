r"""Does lightning attention take as long per token in long rows as in short ones, and is its model as good?

Byte-level text from the sources of the running Python's standard library, four layers of
TransNormerLLM: lightning attention, with relative positions in the first layer, SGLU and
SimpleRMSNorm. llama is rotary softmax attention, a gated unit with silu and RMSNorm at equal
parameters; tnl_rms has RMSNorm with gains.

The arms with a number are one layer that copies, at that many tokens a row and 2048 tokens a step, a
few steps of which are timed: the slope of log milliseconds over log tokens is 0 where the time per
token is constant. Over 128 to 2048 tokens a factor of 1.5 is a slope of 0.15 and one of 4 of 0.5.

    python -m research.verify lightning
    python -m research.verify lightning_time_is_linear softmax_time_is_not

cpu: 2 cores, 9 core minutes for its claims: 3 HOLDS, 1 INCONCLUSIVE
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
SCALING = "Scaling TransNormer to 175 Billion Parameters"
SPEED = "Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention"
LENGTHS = (128, 512, 2048)  # tokens


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
  config.model.pattern = ("first",) + ("mixer",) * (3 if small else 23)

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "lightning.LightningAttention"
  config.model.mixer.layers = 4 if small else 24
  config.model.mixer.heads = 4 if small else 16
  config.model.mixer.key_dim = 16 if small else 64
  config.model.mixer.value_dim = 16 if small else 64
  config.model.mixer.gate_rank = 16 if small else 64

  config.model.first = ml_collections.ConfigDict(dict(config.model.mixer))
  config.model.first.lrpe_theta = 10_000.0

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "sglu.SGLU"
  config.model.channel.hidden = 157 if small else 2688  # what a GLU of 168 costs, less the low-rank gate

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "simple_rms_norm.SimpleRMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 4e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 5, "cpu": 30, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 30, "cpu": 300, "paper": 100_000}[preset]
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
  attention = {"model.mixer.name": "attention.Attention", "model.pattern": ("mixer",)}
  llama = attention | {"model.mixer.head_dim": 16, "model.mixer.max_tokens": 128, "model.channel.name": "glu.GLU",
                       "model.channel.hidden": 168, "model.norm.name": "rms_norm.RMSNorm"}
  timed = {}
  for tokens in LENGTHS:
    row = {"task.name": "selective_copy.SelectiveCopy", "task.tokens": tokens, "task.batch_size": 2048 // tokens,
           "model.depth": 1, "model.pattern": ("mixer",), "model.mixer.heads": 2, "optim.steps": 12,
           "optim.warmup": 3, "train.log_every": 3, "train.eval_batches": 1}
    timed[f"lightning_{tokens}"] = row | {"model.mixer.layers": 1, "model.mixer.key_dim": 32,
                                          "model.mixer.value_dim": 32}
    timed[f"softmax_{tokens}"] = row | attention | {"model.mixer.head_dim": 32, "model.mixer.max_tokens": 1}
  return {"tnl": {}, "llama": llama, "tnl_rms": {"model.norm.name": "rms_norm.RMSNorm"}, **timed}


def claims():
  common = dict(year=2023, paper=SCALING, metric="eval/loss", seeds=5)
  timing = dict(year=2024, paper=SPEED, metric="time/step_ms", kind="ratio", scale=tuple(map(float, LENGTHS)), seeds=3)
  return [
      Claim(id="lightning_time_is_linear", **timing, better="lower", bound="0.15 slope",
            arms=tuple(f"lightning_{tokens}" for tokens in LENGTHS),
            statement="With equally many tokens, a step of lightning attention takes as long at 2048 tokens a row as at 128",
            paper_value="training speed is constant as sequences grow, at fixed memory (abstract)"),
      Claim(id="softmax_time_is_not", **timing, better="higher", bound="0.5 slope",
            arms=tuple(f"softmax_{tokens}" for tokens in LENGTHS),
            statement="With equally many tokens, a step of softmax attention takes 4 times as long at 2048 tokens a row as at 128",
            paper_value="other attentions slow down as sequences grow (figures, unverified)"),
      Claim(id="tnl_beats_llama", **common, better="lower", arm="tnl", against="llama", margin="0 nats",
            match="parameters", statement="The blocks of TransNormerLLM reach a lower loss than those of a llama",
            paper_value="more accurate than softmax models of equal size (abstract)"),
      Claim(id="srms_is_as_good_as_rms", **common, better="equal", arm="tnl", against="tnl_rms", margin="0.02 nats",
            statement="RMSNorm without gains ends at the loss of RMSNorm with gains",
            paper_value="simple norm at no loss of accuracy (abstract and ablation, unverified)"),
  ]
