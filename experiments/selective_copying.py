r"""Does a recurrence that chooses what it remembers copy data out of noise, where a fixed one cannot?

Six symbols stand at random places among noise and are said in order at the end. Two layers without
channel mixer. Mamba's step, input and output depend on the token; S5 and the LRU are linear and
time-invariant, so the time since a symbol, not its number, decides what is left of it.

    python -m research.verify selective_copying
    python -m research.sweep --config=selective_copying --metric=eval/accuracy

cpu: 2 cores, 9 core minutes for its claims: 1 HOLDS, 1 FAILS, 1 INCONCLUSIVE
smoke: 2 cores, 36 s on a busy machine
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = "Mamba: Linear-Time Sequence Modeling with Selective State Spaces"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "selective_copy.SelectiveCopy"
  config.task.vocab = 10 if small else 18
  config.task.tokens = 48 if small else 4096
  config.task.items = 6 if small else 16
  config.task.batch_size = 32 if small else 64  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 2
  config.model.width = 64
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "mamba.Mamba"
  config.model.mixer.channels = 128
  config.model.mixer.states = 8 if small else 64

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 4e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 6, "cpu": 60, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 60, "cpu": 600, "paper": 400_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 300  # steps

  return config


def arms():
  return {
      "mamba": {},
      "s5": {"model.mixer.name": "s5.S5", "model.mixer.modes": 256},
      "lru": {"model.mixer.name": "lru.LRU", "model.mixer.modes": 256},
  }


def claims():
  common = dict(paper=PAPER, year=2023, metric="eval/accuracy", better="higher", seeds=5)
  return [
      Claim(id="selection_copies_better_than_s5", **common, arm="mamba", against="s5", margin="0.3 accuracy",
            statement="Mamba copies scattered data where S5, which is time-invariant, does not",
            paper_value="97.0 for S6 against 18.3 for S4 without gates, length 4096 (Table 1, unverified digits)"),
      Claim(id="selection_copies_better_than_lru", **common, arm="mamba", against="lru", margin="0.3 accuracy",
            statement="Mamba copies scattered data where the LRU, which is time-invariant, does not",
            paper_value="97.0 for S6 against 18.3 for S4 without gates, length 4096 (Table 1, unverified digits)"),
      Claim(id="selection_solves_copying", **common, kind="threshold", arm="mamba", bound="0.95 accuracy",
            statement="Mamba copies at least 95 % of the data in every seed",
            paper_value="97.0 to 99.8 for S6 (Table 1, unverified digits)"),
  ]
