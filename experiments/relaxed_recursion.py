r"""How much of a trained model survives when its layers share their weights, and how much does a LoRA bring back?

Eight layers on the sources of the running Python's standard library, trained for 300 steps, are tied to four blocks
that serve two layers each; every layer keeps its norms and the best approximation, of a given rank, of what its
matrices differ from the mean by. untied measures the loss right after tying, for ranks 0, 4, 16 and 64. rank_0 and
rank_16 train the tied model for 80 more steps.

    python -m research.verify relaxed_recursion

cpu: 2 cores, 7 core minutes for its claims: 3 HOLDS
smoke: 2 cores, 36 CPU seconds for untied
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "adaptive depth"
PAPER = "Relaxed Recursive Transformers: Effective Parameter Sharing with Layer-wise LoRA"


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
  config.model.share = "cycle:4" if small else "cycle:12"
  config.model.lora_rank = 16 if small else 128

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
  config.init.grow = "relax"
  config.init.grow_steps = {"smoke": 20, "cpu": 300, "paper": 20_000}[preset]

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 3e-4
  config.optim.schedule = "constant"
  config.optim.steps = {"smoke": 10, "cpu": 80, "paper": 5_000}[preset]
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 200  # steps

  return config


def arms():
  plain = {"init.grow": "", "model.share": "", "model.lora_rank": 0}
  return {"rank_16": {}, "rank_0": {"model.lora_rank": 0},
          "untied": plain | {"optim.steps": 300}}


def measure(program, state) -> dict[str, float]:
  """Returns the loss right after an untied model was tied, at rising ranks, and what the last rank leaves out."""
  if program.config.model.share:
    return {}
  ranks = (0, 4, 16, 64)  # 64 is the full rank of every matrix at width 64
  batches = program.config.train.eval_batches
  found = program.relaxed_losses(state, "cycle:4", ranks, batches)
  losses = [found[f"relaxed/loss_rank_{rank}"] for rank in ranks]
  untied = program.measured(state, limit=batches)["eval/loss"]
  return found | {"relaxed/least_drop": min(a - b for a, b in zip(losses, losses[1:])),
                  "relaxed/error_at_full_rank": abs(losses[-1] - untied)}


def claims():
  common = dict(paper=PAPER, year=2024, seeds=3)
  return [
      Claim(id="full_rank_ties_nothing", **common, metric="relaxed/error_at_full_rank", kind="exact", arm="untied",
            better="lower", bound="1e-4 nats", paper_value="by construction (section 2.3 of the method)",
            statement="With LoRA of full rank the shared model has the loss of the model it was made from"),
      Claim(id="each_rank_loses_less", **common, metric="relaxed/least_drop", kind="threshold", arm="untied",
            better="higher", bound="0 nats", paper_value="a higher rank recovers more of the original (abstract)",
            statement="Right after tying 8 layers to 4, the loss falls from rank 0 to 4 to 16 to 64"),
      Claim(id="rank_recovers_more", **common, metric="eval/loss", arm="rank_16", against="rank_0",
            better="lower", margin="0.02 nats", paper_value="LoRA of rank 512 recovers most of Gemma 2B (abstract)",
            statement="After further training, layers with LoRA of rank 16 have a lower loss than tied ones"),
  ]
