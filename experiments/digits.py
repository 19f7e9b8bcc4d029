r"""Can a sequence mixer read a handwritten digit pixel by pixel, or patch by patch?

scikit-learn's 1,797 real 8x8 digits, or a TFDS image set by name, as a sequence of
vectors; the class comes from the mean over the sequence.

    python -m research.run --config=experiments/digits.py:cpu
    python -m research.run --config=experiments/digits.py:cpu --config.task.layout=pixels
    python -m research.run --config=experiments/digits.py:paper --config.task.dataset=mnist

cpu: 2 cores, 20 s: accuracy 0.964
smoke: 2 cores, 15 s
paper: one H100 or v5e-8, not measured
"""

import ml_collections

PRESETS = ("cpu", "smoke", "paper")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = {"smoke": True, "cpu": True, "paper": False}[preset]

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "images.Images"
  config.task.dataset = "digits" if small else "cifar10"
  config.task.layout = "patches"
  config.task.patch = 2 if small else 4  # pixels, each way
  config.task.batch_size = 64 if small else 512  # images, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "classifier.Classifier"
  config.model.depth = 2 if small else 12
  config.model.width = 64 if small else 384
  config.model.placement = "pre"
  config.model.max_positions = 64  # as many as the longest sequence has

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 4 if small else 6
  config.model.mixer.head_dim = 16 if small else 64
  config.model.mixer.direction = "bidirectional"
  config.model.mixer.rope_theta = 0.0  # positions are learned
  config.model.mixer.max_tokens = 64

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "mlp.MLP"
  config.model.channel.expansion = 2.0 if small else 4.0

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "layer_norm.LayerNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 2e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 10, "cpu": 50, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 60, "cpu": 600, "paper": 50_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.weight_decay = 0.05
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 200  # steps
  config.train.eval_batches = 4
  config.train.save_every = 200  # steps

  return config
