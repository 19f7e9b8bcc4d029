r"""Does a linear recurrence count modulo three only where one token may turn its state?

Running count modulo 3 of the ones among 32 bits, scored at 32, 64 and 128. DeltaNet's one factor
I - beta k k^T per token mirrors at best; two factors turn by any angle, so by a third. A second layer of
mirrors is the other way out that the theory knows. A first round of 600 steps and three seeds was INCONCLUSIVE:
not all seeds of two factors had learned to count by then.

    python -m research.verify counting
    python -m research.sweep --config=counting --metric=eval/accuracy_at_4x

cpu: 2 cores, 16 core minutes for its claims: 1 FAILS, 3 INCONCLUSIVE
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
  config.task.name = "modular.ModularSum"
  config.task.modulus = 3
  config.task.counting = True
  config.task.tokens = 32 if small else 40
  config.task.batch_size = 64 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 1
  config.model.width = 64 if small else 128
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "delta_product.DeltaProduct"
  config.model.mixer.householder = 2
  config.model.mixer.negative_eigenvalues = True
  config.model.mixer.forget_gate = False
  config.model.mixer.heads = 4
  config.model.mixer.key_dim = 16 if small else 32
  config.model.mixer.value_dim = 16 if small else 32
  config.model.mixer.conv = 0
  config.model.mixer.activation = "identity"

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "mlp.MLP"
  config.model.channel.expansion = 2.0
  config.model.channel.activation = "silu"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 4, "cpu": 60, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 40, "cpu": 1200, "paper": 20_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.lengths = (1, 2, 4)
  config.train.save_every = 1200  # steps

  return config


def arms():
  one = {"model.mixer.householder": 1}
  positive = {"model.mixer.negative_eigenvalues": False}
  return {"two_factors": {}, "one_factor": one, "one_positive": one | positive, "two_layers": one | {"model.depth": 2}}


def claims():
  common = dict(paper=PAPER, year=2024, metric="eval/accuracy_at_4x", better="higher", seeds=5, arm="two_factors")
  return [
      Claim(id="two_reflections_count_modulo_3", **common, kind="threshold", bound="0.9 accuracy",
            statement="Two factors with beta up to 2 count modulo 3 in one layer, at 4 times the length, in every seed",
            paper_value="a product of two reflections has the complex eigenvalues that it needs (theory)"),
      Claim(id="one_reflection_does_not_count_modulo_3", **common, against="one_factor", margin="0.3 accuracy",
            statement="Two factors beat one, both with beta up to 2, in counting modulo 3 at 4 times the length",
            paper_value="one layer of symmetric factors cannot count modulo 3 (theory)"),
      Claim(id="positive_eigenvalues_do_not_count_modulo_3", **common, against="one_positive", margin="0.3 accuracy",
            statement="Two factors beat the usual DeltaNet, one with beta up to 1, in counting modulo 3",
            paper_value="real, positive eigenvalues cannot count modulo 3 (theory)"),
      Claim(id="two_layers_extrapolate_worse", **common, against="two_layers", margin="0.2 accuracy",
            statement="Two factors in one layer count further than one factor in each of two layers",
            paper_value="two layers of reflections can count modulo 3 in principle (theory)"),
  ]
