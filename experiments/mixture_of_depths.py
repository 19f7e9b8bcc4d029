r"""Can a router find the few tokens that matter, and let the others pass by most of a layer's work?

Six symbols stand at random places among noise and are said in order at the end; six layers of attention. p_mod keeps
fewer tokens the deeper the layer, half of them on average, p_mod_constant half of them everywhere; gamma_mod routes
two of the six layers, with half of the tokens; mod routes every second layer to an eighth of them. dense has no routed
layer. Evaluation chooses tokens as training does, by the whole row. All tokens of a row compete; both multimodal
papers route the tokens of images.

    python -m research.verify mixture_of_depths
    python -m research.sweep --config=mixture_of_depths --metric=eval/accuracy

cpu: 2 cores, 6 core minutes for its claims: 1 HOLDS, 3 INCONCLUSIVE
smoke: 2 cores, 35 CPU seconds for p_mod
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "adaptive depth"
P_MOD = "p-MoD: Building Mixture-of-Depths MLLMs via Progressive Ratio Decay"
GAMMA = "γ-MoD: Exploring Mixture-of-Depth Adaptation for Multimodal Large Language Models"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "selective_copy.SelectiveCopy"
  config.task.vocab = 10 if small else 18
  config.task.tokens = 48 if small else 512
  config.task.items = 6 if small else 16
  config.task.batch_size = 16 if small else 64  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 6 if small else 12
  config.model.width = 48 if small else 512
  config.model.placement = "pre"
  config.model.max_positions = 48 if small else 512

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 3 if small else 8
  config.model.mixer.head_dim = 16 if small else 64
  config.model.mixer.max_tokens = 48 if small else 512
  config.model.mixer.rope_theta = 0.0  # places are those of the row, also for kept tokens

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "glu.GLU"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.model.policy = ml_collections.ConfigDict()
  config.model.policy.name = "p_mod.PMoD"
  config.model.policy.mean_ratio = 0.5

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 5, "cpu": 50, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 30, "cpu": 600, "paper": 50_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 300  # steps

  return config


def arms():
  base = {"model.policy.name": "mixture_of_depths.MixtureOfDepths"}
  return {
      "p_mod": {},
      "p_mod_constant": {"model.policy.decay": False},
      "gamma_mod": {"model.policy.name": "gamma_mod.GammaMoD", "model.policy.ratio": 0.5},
      "mod": base,
      "dense": base | {"model.policy.every": 1000},  # layers: more than there are, so none is routed
  }


def claims():
  common = dict(metric="eval/accuracy", seeds=5)
  return [
      Claim(id="p_mod_matches_dense", **common, paper=P_MOD, year=2024, better="equal", arm="p_mod", against="dense",
            margin="0.02 accuracy", paper_value="matches the baseline at 55.6% TFLOPs (abstract)",
            statement="Progressive routing of half of the tokens copies as well as the dense model, within 2 points"),
      Claim(id="p_mod_computes_less", metric="count/flops", kind="ratio", seeds=1, paper=P_MOD, year=2024,
            better="lower", arm="p_mod", against="dense", bound="0.8 times", paper_value="55.6% TFLOPs (abstract)",
            statement="Progressive routing of half of the tokens takes at most 0.8 of the dense model's operations"),
      Claim(id="decay_beats_constant", **common, paper=P_MOD, year=2024, better="higher", arm="p_mod",
            against="p_mod_constant", margin="0.02 accuracy", paper_value="PRD beats constant ratios (ablation, unverified)",
            statement="Keeping fewer tokens the deeper the layer copies better than half of them everywhere"),
      Claim(id="gamma_mod_matches_dense", **common, paper=GAMMA, year=2024, better="equal", arm="gamma_mod",
            against="dense", margin="0.02 accuracy", paper_value="-1.5% on average at -31% training time (abstract)",
            statement="Routing the middle layers to half of the tokens copies as well as the dense model, within 2 points"),
  ]
