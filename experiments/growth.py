r"""Does a deep model learn faster when it begins as a shallow one, stacked on itself?

Eight layers on the sources of the running Python's standard library. The grown arms first train two layers for
200 steps, which cost as much as 50 steps of eight, then grow by an operator and go on for 260 steps: 310 in all,
by cost. scratch trains eight layers for 320 from the start. The learning rate is constant, as in the card's
protocol, so that an arm can be read at every step. Embedding and head, which do not grow, are not in this sum:
a step of two layers costs a little more than a quarter.

    python -m research.verify growth
    python -m research.grow --help      # the same from the checkpoint of any run

cpu: 2 cores, 5 core minutes for its claims: 1 HOLDS, 1 INCONCLUSIVE
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "adaptive depth"
PAPER = "Stacking Your Transformers: A Closer Look at Model Growth for Efficient LLM Pre-Training"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.tokens = 64 if small else 2048
  config.task.batch_size = 8 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 8 if small else 24
  config.model.width = 64 if small else 1024
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 4 if small else 16
  config.model.mixer.head_dim = 16 if small else 64
  config.model.mixer.max_tokens = 64 if small else 2048

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "glu.GLU"
  config.model.channel.hidden = 160 if small else 2736

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.init = ml_collections.ConfigDict()
  config.init.grow = "stack"
  config.init.grow_factor = 4
  config.init.grow_steps = {"smoke": 20, "cpu": 200, "paper": 20_000}[preset]

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 3e-4
  config.optim.schedule = "constant"
  config.optim.steps = {"smoke": 26, "cpu": 260, "paper": 26_000}[preset]
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 200  # steps

  return config


def arms():
  scratch = {"init.grow": "", "optim.steps": 320}
  return {"stack": {}, "interpolate": {"init.grow": "interpolate"}, "zero": {"init.grow": "zero"},
          "random": {"init.grow": "random"}, "learn": {"init.grow": "learn"}, "scratch": scratch}


def claims():
  common = dict(paper=PAPER, year=2024, metric="eval/loss", better="lower", arm="stack")
  return [
      Claim(id="stacking_saves_compute", **common, against="scratch", margin="0.05 nats", seeds=3,
            statement="A model of 2 layers stacked to 8 has a lower loss than 8 layers from scratch, at equal cost",
            paper_value="54.6% speed-up: the loss of 300B tokens at 7B with 194B (abstract)"),
      Claim(id="stacking_beats_random_layers", **common, against="random", margin="0.02 nats", seeds=3,
            statement="Stacking the trained layers beats adding fresh ones on top of them",
            paper_value="G_stack is the best of its four operators (abstract)"),
  ]
