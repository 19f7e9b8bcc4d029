r"""Does a state space remember a delay only where its transition starts from HiPPO?

Echo of the token 24 steps back among 64, one layer of one state space per channel. The arm "random" has the same structure,
steps and decay, but frequencies and low-rank part drawn at random; "s4d" leaves the low-rank part out.

    python -m research.verify s4_delay
    python -m research.run --config=experiments/s4_delay.py --config.model.mixer.transition=random

cpu: 2 cores, 2 core minutes for its claims: 2 HOLDS
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = "Efficiently Modeling Long Sequences with Structured State Spaces"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "delay.Delay"
  config.task.vocab = 8
  config.task.tokens = 64 if small else 4096
  config.task.delay = 24 if small else 1000  # tokens
  config.task.batch_size = 32 if small else 64  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 1 if small else 4
  config.model.width = 32 if small else 128
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "s4.S4"
  config.model.mixer.channels = 32 if small else 128
  config.model.mixer.order = 32 if small else 64
  config.model.mixer.transition = "legs"
  config.model.mixer.length = 64 if small else 4096  # tokens
  config.model.mixer.step_min = 1e-2 if small else 1e-3
  config.model.mixer.step_max = 0.1

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
  return {
      "hippo": {},
      "random": {"model.mixer.transition": "random"},
      "s4d": {"model.mixer.name": "s4d.S4D", "model.mixer.modes": "legs"},
  }


def claims():
  common = dict(paper=PAPER, year=2021, seeds=5)
  return [
      Claim(id="hippo_start_lowers_the_loss_tenfold", **common, kind="ratio", metric="eval/loss", better="lower",
            arm="hippo", against="random", bound="0.1 of the loss",
            statement="Started from HiPPO, S4 echoes a token 24 steps back at a tenth of the loss of a random start",
            paper_value="HiPPO generalises far better than a random transition on sequential CIFAR-10 (unverified digits)"),
      Claim(id="the_diagonal_is_enough", **common, metric="eval/accuracy", better="equal", arm="s4d", against="hippo",
            margin="0.05 accuracy", statement="Without its low-rank part S4 echoes as well (S4D)",
            paper_value="not of this paper: S4D is within about 1 % of S4 (Gu et al., 2022, unverified digits)"),
  ]
