r"""Does a linear recurrence follow permutations of three things only where its state may turn?

Word problem of S3: after every one of 24 permutations, the product of all so far, scored at 24, 48 and 96. One
layer of DeltaProduct without decay: a token multiplies the state by one or by two factors I - beta k k^T, with
beta below 1 or up to 2. One factor with beta of 2 mirrors, which serves exchanges of two things; a
cycle of three is a turn, and takes two mirrors. Keys have no silu: with it the first arm stayed at 0.39 at 4 times
the length in 1200 steps of one seed, without it at 0.998 in 600. A first round of 600 steps and three seeds was
INCONCLUSIVE: three of five seeds of the first arm were done with S3 by then, two stood at 0.37 and 0.43.

    python -m research.verify state_tracking
    python -m research.sweep --config=state_tracking --metric=eval/accuracy_at_4x

cpu: 2 cores, 12 core minutes for its claims: 2 HOLDS, 1 FAILS, 1 INCONCLUSIVE
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
  config.task.name = "permutations.Permutations"
  config.task.group = "S3"
  config.task.tokens = 24 if small else 128
  config.task.batch_size = 64 if small else 1024  # sequences, over all hosts
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
  return {"two_negative": {}, "one_negative": one, "two_positive": positive, "one_positive": one | positive}


def claims():
  common = dict(paper=PAPER, year=2024, metric="eval/accuracy_at_4x", better="higher", seeds=5, arm="two_negative")
  return [
      Claim(id="two_reflections_solve_s3", **common, kind="threshold", bound="0.95 accuracy",
            statement="Two factors with beta up to 2 solve S3 in one layer, at 4 times the length, in every seed",
            paper_value="products of two reflections make every rotation; S3 is solved by them (unverified digits)"),
      Claim(id="one_reflection_does_not_solve_s3", **common, against="one_negative", margin="0.3 accuracy",
            statement="Two factors per token beat one where beta reaches to 2, on S3 at 4 times the length",
            paper_value="one generalised Householder factor per token cannot make a cycle of three"),
      Claim(id="positive_eigenvalues_do_not_solve_s3", **common, against="two_positive", margin="0.3 accuracy",
            statement="beta up to 2 beats beta up to 1 where there are two factors, on S3 at 4 times the length",
            paper_value="without negative eigenvalues S3 stays near chance"),
      Claim(id="neither_does_not_solve_s3", **common, against="one_positive", margin="0.3 accuracy",
            statement="Two factors with beta up to 2 beat the usual DeltaNet, one factor with beta up to 1, on S3",
            paper_value="DeltaNet with eigenvalues in [0, 1] does not solve S3"),
  ]
