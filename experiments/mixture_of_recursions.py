r"""Does a layer that is applied again to fewer and fewer tokens keep up with one applied to all?

A byte-level language model whose middle layer is applied three times, between a first and a last layer of their own.
"mor" lets a router keep all tokens, then two thirds, then one third; "recursive" applies the tied layer to all tokens
each time, with norms of its own for each; "vanilla" has three middle layers in place of one. In "mor_shared" the second
and third recursion read the keys and values that the first made of all tokens, in place of their own. Evaluation
chooses tokens as training does, by the whole row, so mor's router sees the future; choice_accuracy is how often the
sign of the router says what the row chose, over tokens offered to the second and third recursion. "No worse than by
0.05 nats" is claimed as a ratio of losses, as a difference can only be claimed on both sides.

    python -m research.verify mixture_of_recursions
    python -m research.sweep --config=mixture_of_recursions --metric=eval/loss

cpu: 2 cores, 4 core minutes for its claims: 3 HOLDS, 1 FAILS
smoke: 2 cores, 23 CPU seconds for mor
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "adaptive depth"
PAPER = "Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level Computation"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.path = ""
  config.task.data_dir = ""
  config.task.tokens = 60 if small else 1020  # a multiple of the recursions
  config.task.batch_size = 8 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 3
  config.model.width = 64 if small else 768
  config.model.placement = "pre"
  config.model.max_positions = 60 if small else 1020

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 4 if small else 12
  config.model.mixer.head_dim = 16 if small else 64
  config.model.mixer.max_tokens = 60 if small else 1020
  config.model.mixer.rope_theta = 0.0  # places are those of the row, also for kept tokens

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "glu.GLU"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.model.policy = ml_collections.ConfigDict()
  config.model.policy.name = "mixture_of_recursions.MixtureOfRecursions"
  config.model.policy.recursions = 3
  config.model.policy.ends = 1  # layers at each end that are not repeated

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 5, "cpu": 30, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 40, "cpu": 500, "paper": 50_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 500  # steps

  return config


def arms():
  plain = {"model.depth": 5, "model.policy.ends": 5}  # ends that meet leave no layer to the policy
  return {"mor": {}, "mor_shared": {"model.policy.keys": "shared"}, "recursive": plain | {"model.share": "middle_cycle:1"},
          "vanilla": plain}


def claims():
  common = dict(paper=PAPER, year=2025)
  return [
      Claim(id="recursion_of_fewer_computes_less", **common, metric="count/flops", kind="ratio", arm="mor",
            against="recursive", better="lower", bound="0.9 times", seeds=1,
            paper_value="lower perplexity at equal training FLOPs (abstract)",
            statement="Recursion of all, 2/3 and 1/3 of the tokens takes at most 0.9 of the plain recursion's operations"),
      Claim(id="recursion_of_fewer_keeps_loss", **common, metric="eval/loss", kind="ratio", arm="mor",
            against="recursive", better="lower", bound="1.02 times", seeds=5,
            paper_value="lower perplexity at equal FLOPs (abstract)",
            statement="Recursion of fewer tokens loses no more than 2 % (0.045 nats) against plain recursion"),
      Claim(id="sign_says_what_is_kept", **common, metric="eval/choice_accuracy", kind="threshold", arm="mor",
            better="higher", bound="0.9 accuracy", seeds=5,
            paper_value="the auxiliary loss separates kept from dropped tokens almost perfectly (router analysis, unverified)",
            statement="The sign of the router says which tokens the row keeps for more than 90% of those offered"),
      Claim(id="shared_keys_keep_loss", **common, metric="eval/loss", kind="ratio", arm="mor_shared", against="mor",
            better="lower", bound="1.02 times", seeds=5,
            paper_value="own keys are a little better for expert choice at equal compute (ablation of caching, unverified)",
            statement="Keys and values of the first recursion, read by all of them, lose no more than 2 % against own ones"),
  ]
