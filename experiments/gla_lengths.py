r"""Does a learned forget gate carry a language model to texts longer than those it was trained on?

Two layers on real text, byte by byte, trained on 64 bytes at a time, scored on the same text in pieces of 64, 128,
256 and 512. Compared are GLA, whose tokens choose what every key channel forgets; GLA whose gate is held open,
tau without end, so that it sums all it has read; retention, which forgets at fixed rates; and softmax attention
with rotary positions. growth_at_8x is the loss at 512 bytes minus the loss at 64, negative where
more context helps.

    python -m research.verify gla_lengths

cpu: 2 cores, 5 core minutes for each of its claims: 4 HOLDS
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import dataclasses

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = "Gated Linear Attention Transformers with Hardware-Efficient Training"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.tokens = 64 if small else 2048
  config.task.batch_size = 16 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 2 if small else 24
  config.model.width = 64 if small else 1024
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "gla.GLA"
  config.model.mixer.heads = 2 if small else 4
  config.model.mixer.key_dim = 16 if small else 128
  config.model.mixer.value_dim = 32 if small else 256

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "glu.GLU"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 3e-4
  config.optim.warmup = {"smoke": 5, "cpu": 50, "paper": 1000}[preset]  # steps
  config.optim.steps = {"smoke": 40, "cpu": 500, "paper": 28_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.b2 = 0.98
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 64
  config.train.save_every = 500  # steps

  return config


def arms():
  return {
      "gla": {},
      "open_gate": {"model.mixer.tau": 1e9},
      "retention": {"model.mixer.name": "retention.Retention"},
      "attention": {"model.mixer.name": "attention.Attention", "model.mixer.head_dim": 32,
                    "model.mixer.max_tokens": 512},
  }


def measure(program, state) -> dict[str, float]:
  """Returns the loss on the same validation text, cut into pieces of 1, 2, 4 and 8 times the training length."""
  batches, found = program.config.train.eval_batches, {}
  for n in (1, 2, 4, 8):
    task = dataclasses.replace(program.task, tokens=n * program.task.tokens)
    found[f"length/loss_at_{n}x"] = program.measured(state, task, batches // n)["eval/loss"]
  return found | {"length/growth_at_8x": found["length/loss_at_8x"] - found["length/loss_at_1x"]}


def claims():
  common = dict(paper=PAPER, year=2023, better="lower", seeds=3)
  growth = dict(common, metric="length/growth_at_8x", arm="gla")
  return [
      Claim(id="gla_keeps_its_loss_on_longer_text", **growth, kind="threshold", bound="0.05 nats",
            statement="GLA's loss rises by less than 0.05 nats on text 8 times longer than in training, in every seed",
            paper_value="trained on 2K tokens it generalises beyond 20K without significant degradation (abstract)"),
      Claim(id="open_gate_loses_on_longer_text", **growth, against="open_gate", margin="0.05 nats",
            statement="The same model with its gates held open loses more than GLA on text 8 times longer",
            paper_value="linear attention without decay does not extrapolate"),
      Claim(id="attention_loses_on_longer_text", **growth, against="attention", margin="0.05 nats",
            statement="Softmax attention with rotary positions loses more than GLA on text 8 times longer",
            paper_value="the Transformer degrades beyond its training length"),
      Claim(id="gates_lower_loss", **common, metric="eval/loss", kind="monotone",
            arms=("open_gate", "retention", "gla"), margin="0.02 nats",
            statement="Byte-level loss falls from no decay to fixed decay, and from fixed decay to learned gates",
            paper_value="1.3B: RetNet 18.64, GLA 17.22 perplexity on WikiText (unverified)"),
  ]
