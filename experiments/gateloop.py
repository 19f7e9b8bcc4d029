r"""Does a recurrence count modulo three only where its memory may turn?

Running count of ones modulo 3, one layer, 32 tokens, scored at 32, 64 and 128. GateLoop shrinks and turns each
channel by what the token says; a third of a turn per one is a counter. Without the phase its eigenvalues
lie in (0, 1): it forgets, but never turns.

    python -m research.verify gateloop
    python -m research.sweep --config=gateloop --metric=eval/accuracy_at_4x

cpu: 2 cores, 1 core minutes for its claims: 3 HOLDS
smoke: 2 cores, 19 s on a busy machine
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = "GateLoop: Fully Data-Controlled Linear Recurrence for Sequence Modeling"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "modular.ModularSum"
  config.task.modulus = 3
  config.task.counting = True
  config.task.tokens = 32
  config.task.batch_size = 64 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 1 if small else 2
  config.model.width = 32 if small else 128
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "gateloop.GateLoop"
  config.model.mixer.heads = 32 if small else 128
  config.model.mixer.key_dim = 1
  config.model.mixer.value_dim = 1
  config.model.mixer.phase = True
  config.model.mixer.half_life = 32.0  # tokens

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
  return {"phase": {}, "real": {"model.mixer.phase": False}}


def claims():
  common = dict(paper=PAPER, year=2023, better="higher", seeds=5)
  return [
      Claim(id="phase_learns_to_count", **common, metric="eval/accuracy", arm="phase", against="real",
            statement="GateLoop counts modulo 3 at the training length with its phase and not without",
            margin="0.2 accuracy", paper_value="no such task; its section on the phase argues from rotations"),
      Claim(id="phase_counts_further", **common, metric="eval/accuracy_at_4x", arm="phase", against="real",
            statement="GateLoop counts modulo 3 at 4 times the training length with its phase and not without",
            margin="0.2 accuracy", paper_value="no such task"),
      Claim(id="real_gates_do_not_count", paper=PAPER, year=2023, seeds=5, metric="eval/accuracy_at_4x",
            better="lower", kind="threshold", arm="real", bound="0.6 accuracy",
            statement="Without its phase GateLoop stays near chance, 1/3, at 4 times the training length",
            paper_value="no such task"),
  ]
