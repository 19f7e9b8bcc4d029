r"""Does a linear recurrence learn parity only where its eigenvalues may be negative?

Running parity of 40 bits, one layer, scored at 40, 80 and 160 bits. DeltaNet's transition along a key has
the eigenvalue 1 - beta: with beta below 1 the state cannot change its sign, with beta up to 2 it can.
A gate per channel (GLA) forgets, but never turns.

    python -m research.verify parity
    python -m research.sweep --config=parity --metric=eval/accuracy_at_4x

cpu: 2 cores, 5 minutes for its claims on a busy machine
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "parity.Parity"
  config.task.tokens = 40
  config.task.batch_size = 64 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 1 if small else 2
  config.model.width = 32 if small else 128
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "delta_net.DeltaNet"
  config.model.mixer.heads = 2 if small else 4
  config.model.mixer.key_dim = 8 if small else 32
  config.model.mixer.value_dim = 8 if small else 32
  config.model.mixer.conv = 0
  config.model.mixer.negative_eigenvalues = True

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "mlp.MLP"
  config.model.channel.expansion = 2.0

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 6, "cpu": 60, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 60, "cpu": 600, "paper": 20_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.lengths = (1, 2, 4)
  config.train.save_every = 300  # steps

  return config


def arms():
  return {
      "negative": {},
      "positive": {"model.mixer.negative_eigenvalues": False},
      "gla": {"model.mixer.name": "gla.GLA"},
  }


def claims():
  common = dict(paper=PAPER, year=2024, metric="eval/accuracy_at_4x", better="higher", seeds=5)
  return [
      Claim(id="negative_eigenvalues_learn_parity", **common, arm="negative", against="positive",
            statement="DeltaNet learns parity with beta up to 2 and not with beta up to 1, scored at 4 times the length",
            margin="0.3 accuracy", paper_value="normalised accuracy of DeltaNet rises from chance to 1 (unverified digits)"),
      Claim(id="negative_eigenvalues_solve_parity", **common, kind="threshold", arm="negative", bound="0.98 accuracy",
            statement="With beta up to 2 every seed solves parity at 4 times the training length",
            paper_value="normalised accuracy 1 (unverified digits)"),
      Claim(id="positive_gates_do_not_learn_parity", **(common | {"better": "lower"}), kind="threshold", arm="gla",
            bound="0.6 accuracy", statement="A gate in (0, 1) per channel stays near chance on parity",
            paper_value="Mamba and GLA stay at chance"),
  ]
