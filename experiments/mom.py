r"""Do several memories of which a token uses a few recall more than one memory of the size that it uses?

Multi-query recall of 8 pairs by two layers without channel mixers, with short convolutions and the gated
delta rule in every memory; the protocol of experiments/zoology.py. mom sends each token to a shared memory and
to 1 of 4 others, each of 4 x 64 numbers; single has one of 8 x 64, as many numbers as a token of mom touches;
half has one of 4 x 64, whole one of 20 x 64, as many numbers as mom has.
With memories of 2 x 64 one seed stayed at chance, with and without the shared one, where single reached 0.74. drop_balance leaves out the loss that keeps all memories in use. All memories of
an arm together are its decoding state.

    python -m research.verify mom
    python -m research.sweep --config=mom --seeds=0:5 --metric=eval/accuracy

cpu: 2 cores, 10 core minutes for its claims: 2 INCONCLUSIVE
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = "MoM: Linear Sequence Modeling with Mixture-of-Memories"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "recall.MultiQueryRecall"
  config.task.vocab = 32 if small else 8192
  config.task.tokens = 32 if small else 512
  config.task.pairs = 8 if small else 64
  config.task.batch_size = 64 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 2
  config.model.width = 64 if small else 256
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "mom.MoM"
  config.model.mixer.rule = "gated_delta"
  config.model.mixer.memories = 4
  config.model.mixer.top_k = 1
  config.model.mixer.shared = True
  config.model.mixer.load_balance = 0.01
  config.model.mixer.heads = 1
  config.model.mixer.key_dim = 4 if small else 32
  config.model.mixer.value_dim = 64

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
  config.train.save_every = 300  # steps

  return config


def arms():
  one = {"model.mixer.memories": 1, "model.mixer.shared": False}
  return {
      "mom": {},
      "single": one | {"model.mixer.key_dim": 8},
      "half": one,
      "whole": one | {"model.mixer.key_dim": 20},
      "drop_balance": {"model.mixer.load_balance": 0.0},
  }


def claims():
  common = dict(paper=PAPER, year=2025, metric="eval/accuracy", seeds=5)
  return [
      Claim(id="mom_recalls_more_than_its_active_state", **common, better="higher", arm="mom", against="single",
            margin="0.02 accuracy",
            statement="A shared memory and one of four recall more than one memory of their joint size",
            paper_value="above linear models of equal active state on recall-intensive tasks (abstract)"),
      Claim(id="mom_recalls_more_than_one_of_its_memories", **common, better="higher", arm="mom", against="half",
            margin="0.05 accuracy", statement="A shared memory and one of four recall more than one of them alone",
            paper_value="more memories recall more (ablation, unverified)"),
  ]
