r"""What can a network of random features do when only its norms are trained, and does EvoNorm need no large batch?

Residual networks of 8, 14 and 32 layers on real 8 x 8 images of digits. Where "only" the norms are trained, all
convolutions and the head keep their first values, with gains drawn from [0, 1); head_only trains the head on the
features of random maps and norms. batch_2 arms train everything on two images at a time, for as many steps.

    python -m research.verify random_features
    python -m research.run --config=experiments/random_features.py --config.model.depth=5

cpu: 2 cores, 6 core minutes for its claims: 2 HOLDS, 1 INCONCLUSIVE
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "norms"
ONLY = "Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features in CNNs"
EVOLVING = "Evolving Normalization-Activation Layers"
PAPER = ONLY


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "images.Images"
  config.task.dataset = "digits" if small else "cifar10"
  config.task.layout = "pixels"
  config.task.batch_size = 64 if small else 128  # images, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "resnet.ResNet"
  config.model.depth = 2 if small else 18  # blocks per stage; the network has 6 times as many layers, and 2
  config.model.width = 8 if small else 16
  config.model.placement = "none"  # the network places its norms itself

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "linear_attention.LinearAttention"  # not used: the blocks are convolutions

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "batch_norm.BatchNorm"
  config.model.norm.gain_init = "uniform"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "sgd"
  config.optim.lr = 0.1
  config.optim.momentum = 0.9
  config.optim.schedule = "cosine"
  config.optim.steps = {"smoke": 10, "cpu": 300, "paper": 62_500}[preset]
  config.optim.trainable = "norm/(scale|bias)$"

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.save_every = 300  # steps

  return config


def arms():
  whole = {"optim.trainable": ".", "optim.lr": 0.02, "task.batch_size": 2}
  return {
      "only_14": {},
      "only_8": {"model.depth": 1},
      "only_32": {"model.depth": 5},
      "head_only": {"optim.trainable": "^head/"},
      "bn_batch_2": whole | {"model.norm.gain_init": "ones"},
      "evonorm_batch_2": whole | {"model.norm.name": "evonorm.EvoNorm"},
  }


def claims():
  only = dict(paper=ONLY, year=2020, metric="eval/accuracy", better="higher")
  return [
      Claim(id="norms_alone_beat_chance", **only, seeds=5, kind="threshold", arm="only_14", bound="0.2 accuracy",
            statement="With only its norms trained, a network of 14 layers is right more than twice as often as by chance",
            paper_value="82 % on CIFAR-10 (ResNet-866), far above chance at every depth (Figure 2)"),
      Claim(id="norms_alone_gain_from_depth", **only, seeds=5, kind="monotone", arms=("only_8", "only_14", "only_32"),
            margin="0.01 accuracy", statement="With only its norms trained, each deeper network of 8, 14 and 32 layers is right more often",
            paper_value="accuracy rises with depth (Figure 2)"),
      Claim(id="evonorm_needs_no_large_batch", paper=EVOLVING, year=2020, seeds=3, metric="eval/accuracy", better="higher",
            arm="evonorm_batch_2", against="bn_batch_2", margin="0.02 accuracy",
            statement="Trained on two images at a time, EvoNorm-S0 is right more often than BatchNorm with relu",
            paper_value="S0 keeps its accuracy at small batches, BN does not (unverified digits)"),
  ]
