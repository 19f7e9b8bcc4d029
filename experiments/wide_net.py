r"""Is it better to widen one layer with experts and use it again and again, than to tie a plain one?

Six layers on the sources of the running Python's standard library. All but untied use one set of matrices for all
layers, each layer with norms of its own: "shared" a plain gated linear unit, "wide" a mixture of four, two of them
for each token.

    python -m research.verify wide_net

cpu: 2 cores, 9 core minutes for its claims: 2 HOLDS
smoke: 2 cores, 38 CPU seconds an arm
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "adaptive depth"
PAPER = "Go Wider Instead of Deeper"


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
  config.model.depth = 6 if small else 12
  config.model.width = 64 if small else 1024
  config.model.placement = "pre"
  config.model.share = "cycle:1"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 4 if small else 16
  config.model.mixer.head_dim = 16 if small else 64
  config.model.mixer.max_tokens = 64 if small else 2048

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "moe.MoE"
  config.model.channel.experts = 4
  config.model.channel.hidden = 160 if small else 2736
  config.model.channel.router = ml_collections.ConfigDict()
  config.model.channel.router.name = "gshard.GShard"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 3e-4
  config.optim.final = 0.05  # of lr
  config.optim.warmup = {"smoke": 3, "cpu": 50, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 30, "cpu": 600, "paper": 26_000}[preset]
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 200  # steps

  return config


def arms():
  return {"wide": {}, "shared": {"model.channel.name": "glu.GLU"},
          "untied": {"model.channel.name": "glu.GLU", "model.share": ""}}


def claims():
  common = dict(paper=PAPER, year=2021, metric="eval/loss", better="lower", seeds=5)
  return [
      Claim(id="wider_beats_tied", **common, arm="wide", against="shared", margin="0.03 nats",
            statement="Six tied layers learn more with a mixture of 4 experts than with one",
            paper_value="+1.8% on ImageNet over ALBERT-style sharing (abstract)"),
      Claim(id="wide_has_fewer_parameters_than_untied", paper=PAPER, year=2021, metric="count/inner_parameters",
            kind="ratio", better="lower", arm="wide", against="untied", bound="0.75 times", seeds=1,
            statement="The wide tied model has fewer parameters than the untied one of as many layers",
            paper_value="0.72x the parameters of ViT-B (abstract)"),
  ]
