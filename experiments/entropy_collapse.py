r"""Does bounding the spectral norm of every map keep attention from collapsing at learning rates that are too high?

Twelve post-norm layers of softmax attention on real text, byte by byte, at thirty times a usual learning rate, without
warm-up and without clipping. A layer has collapsed where a token reads little more than one other: the
entropy of what it reads, mean over tokens and heads, falls below 0.1 nats. "entropy/lowest" is that of the lowest layer.

    python -m research.verify entropy_collapse
    python -m research.run --config=experiments/entropy_collapse.py --config.model.mixer.kernel_transform=sigma_reparam

cpu: 2 cores, 2 core minutes for its claims: 3 HOLDS, 1 INCONCLUSIVE
  (one run, seed 0) the lowest entropy of plain was 0.88 nats and its loss 3.44
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "norms"
PAPER = "Stabilizing Transformer Training by Preventing Attention Entropy Collapse"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.tokens = 32 if small else 1024
  config.task.batch_size = 8 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 12 if small else 18
  config.model.width = 32 if small else 768
  config.model.placement = "post"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 2 if small else 12
  config.model.mixer.head_dim = 16 if small else 64
  config.model.mixer.max_tokens = 32 if small else 1024
  config.model.mixer.kernel_transform = ""

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "mlp.MLP"
  config.model.channel.kernel_transform = ""

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "layer_norm.LayerNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adam"
  config.optim.lr = 9e-2 if small else 9e-3
  config.optim.warmup = 0  # steps
  config.optim.steps = {"smoke": 20, "cpu": 200, "paper": 20_000}[preset]
  config.optim.final = 0.1  # of lr
  config.optim.b2 = 0.98
  config.optim.clip = 0.0  # the paper trains without

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 200  # steps

  return config


def measure(program, state):
  """Returns the lowest attention entropy of a layer after training, and before."""
  lowest = lambda state: program.depth_profile(state)["attention_entropy"].min()
  return {"entropy/lowest": lowest(state), "entropy/lowest_at_first": lowest(program.beginning(state))}


def arms():
  sigma = {"model.mixer.kernel_transform": "sigma_reparam", "model.channel.kernel_transform": "sigma_reparam"}
  return {"plain": {}, "sigma": sigma, "plain_slow": {"optim.lr": 3e-3}}


def claims():
  common = dict(paper=PAPER, year=2023, seeds=3)
  return [
      Claim(id="plain_attention_collapses", **common, kind="threshold", metric="entropy/lowest", better="lower", arm="plain",
            bound="0.1 nats", statement="At thirty times a usual learning rate the entropy of some attention layer falls below 0.1 nats",
            paper_value="entropy collapses at high learning rates, and training diverges (Figures 1 and 2)"),
      Claim(id="plain_attention_keeps_entropy_at_a_usual_rate", **common, kind="threshold", metric="entropy/lowest",
            better="higher", arm="plain_slow", bound="0.1 nats",
            statement="At the usual learning rate no attention layer's entropy falls below 0.1 nats",
            paper_value="stable runs keep their entropy (Figure 1)"),
      Claim(id="sigma_reparam_keeps_entropy", **common, kind="threshold", metric="entropy/lowest", better="higher", arm="sigma",
            bound="0.1 nats", statement="With sigmaReparam no attention layer's entropy falls below 0.1 nats at that learning rate",
            paper_value="no collapse with sigmaReparam (Figure 2)"),
      Claim(id="sigma_reparam_trains_where_plain_does_not", **common, metric="eval/loss", better="lower", arm="sigma",
            against="plain", margin="0.1 nats", statement="At thirty times a usual learning rate sigmaReparam ends at a lower loss",
            paper_value="trains without warm-up, weight decay and adaptive optimisers"),
  ]
