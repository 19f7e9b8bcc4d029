r"""What does a Legendre memory hold, and does one such memory replace attention on permuted digits?

Arms long, half and short echo the token 16 steps back among 64 through a memory of 24 coefficients over
a window of 24, 12 or 4 tokens: past the window nothing can be read. Arms lmuformer and attention name
real 8x8 handwritten digits, pixel by pixel in one scrambled order, from two layers each.

    python -m research.verify lmu
    python -m research.run --config=experiments/lmu.py --config.model.mixer.theta=4.0

cpu: 2 cores, 3 core minutes for its claims: 2 HOLDS, 1 INCONCLUSIVE
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "delay.Delay"
  config.task.vocab = 8
  config.task.tokens = 64 if small else 1024
  config.task.delay = 16 if small else 256  # tokens
  config.task.batch_size = 32 if small else 128  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 1 if small else 2
  config.model.width = 32 if small else 256
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "lmu.LMU"
  config.model.mixer.channels = 8 if small else 32
  config.model.mixer.order = 24 if small else 256
  config.model.mixer.theta = 24.0 if small else 400.0  # tokens

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "mlp.MLP"
  config.model.channel.expansion = 2.0

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 4e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 5, "cpu": 50, "paper": 1000}[preset]  # steps
  config.optim.steps = {"smoke": 50, "cpu": 500, "paper": 20_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 250  # steps

  return config


def arms():
  digits = {
      "task.name": "images.Images", "task.dataset": "digits", "task.permuted": True,
      "model.name": "classifier.Classifier", "model.depth": 2,
  }
  return {
      "long": {},
      "half": {"model.mixer.theta": 12.0},
      "short": {"model.mixer.theta": 4.0},
      "lmuformer": digits | {"model.mixer.name": "lmuformer.LMUFormer", "model.mixer.theta": 64.0},
      "attention": digits | {"model.mixer.name": "attention.Attention", "model.mixer.heads": 2,
                             "model.mixer.head_dim": 16, "model.mixer.direction": "bidirectional",
                             "model.mixer.max_tokens": 64, "model.max_positions": 64},
  }


def claims():
  common = dict(paper=PAPER, year=2024, metric="eval/accuracy", seeds=5)
  return [
      Claim(id="the_window_holds_the_delay", **common, kind="threshold", better="higher", arm="long", bound="0.95 accuracy",
            statement="A Legendre memory echoes a token from within its window",
            paper_value="m decodes the signal anywhere in the window (section 3, of the LMU)"),
      Claim(id="a_short_window_forgets", **common, better="higher", arm="long", against="short", margin="0.3 accuracy",
            statement="A window of 24 tokens echoes what came 16 tokens ago, one of 4 does not",
            paper_value="the window is theta long (section 3, of the LMU)"),
      Claim(id="lmuformer_reads_permuted_digits_as_attention_does", **common, better="higher", arm="lmuformer",
            against="attention", margin="0 accuracy",
            statement="LMUFormer's mixer names permuted digits at least as well as attention",
            paper_value="comparable to the best Transformer on Speech Commands V2 with 53 times fewer parameters"),
  ]
