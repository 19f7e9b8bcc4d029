r"""How well does a small hybrid of linear recurrence and attention model real text, byte by byte?

Three layers of simple gated linear attention to one of softmax attention, trained on
the sources of the running Python's standard library.

    python -m research.run
    python -m research.run --config=experiments/byte_lm.py:smoke
    python -m research.run --config.task.path=FOLDER

cpu: 2 cores, 4 minutes: 1.170 nats per byte
smoke: 2 cores, 20 s
paper: one H100 or v5e-8, not measured
"""

import ml_collections

PRESETS = ("cpu", "smoke", "paper")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.path = ""
  config.task.data_dir = ""
  config.task.tokens = {"cpu": 256, "smoke": 128, "paper": 2048}[preset]
  config.task.batch_size = {"cpu": 8, "smoke": 8, "paper": 256}[preset]  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = {"cpu": 4, "smoke": 4, "paper": 24}[preset]
  config.model.width = {"cpu": 128, "smoke": 48, "paper": 1024}[preset]
  config.model.placement = "pre"
  config.model.pattern = ("mixer", "mixer", "mixer", "attention")
  config.model.tied = False
  config.model.max_positions = 0
  config.model.embedding_std = 0.02
  config.model.dropout = 0.0
  config.model.scan = True
  config.model.remat = "none"
  config.model.dtype = "float32"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "simple_gla.SimpleGatedLinearAttention"
  config.model.mixer.heads = {"cpu": 4, "smoke": 4, "paper": 16}[preset]
  config.model.mixer.key_dim = {"cpu": 32, "smoke": 16, "paper": 64}[preset]
  config.model.mixer.value_dim = {"cpu": 32, "smoke": 16, "paper": 64}[preset]

  config.model.attention = ml_collections.ConfigDict()
  config.model.attention.name = "attention.Attention"
  config.model.attention.heads = {"cpu": 4, "smoke": 4, "paper": 16}[preset]
  config.model.attention.head_dim = {"cpu": 32, "smoke": 16, "paper": 64}[preset]
  config.model.attention.max_tokens = {"cpu": 256, "smoke": 128, "paper": 2048}[preset]  # how far back decoding looks

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "glu.GLU"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3
  config.optim.schedule = "cosine"
  config.optim.warmup = {"cpu": 50, "smoke": 5, "paper": 2000}[preset]  # steps
  config.optim.steps = {"cpu": 1000, "smoke": 40, "paper": 100_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.b2 = 0.98
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 10  # steps
  config.train.eval_every = 200  # steps
  config.train.eval_batches = 8
  config.train.save_every = 200  # steps

  config.sample = ml_collections.ConfigDict()
  config.sample.prompt = "def "
  config.sample.tokens = 400
  config.sample.temperature = 0.8

  return config
