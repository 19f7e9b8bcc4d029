r"""Is a linear state space one map as a recurrence and as a convolution, and does HiPPO help it to remember?

Echo of the token 16 steps back among 64, one layer with a dense transition that is not trained. After
training, the validation rows go through the model as a convolution and, declared packed rows of one
document each, token by token: "forms/error" is the largest difference of logits over the largest logit.

    python -m research.verify lssl
    python -m research.run --config=experiments/lssl.py --config.model.mixer.transition=random

cpu: 2 cores, 2 core minutes for its claims: 2 HOLDS
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "recurrences"
PAPER = ("Combining Recurrent, Convolutional, and Continuous-time Models with "
         "Linear State-Space Layers")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "delay.Delay"
  config.task.vocab = 8
  config.task.tokens = 64 if small else 1024
  config.task.delay = 16 if small else 256  # tokens
  config.task.batch_size = 32 if small else 64  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 1 if small else 4
  config.model.width = 32 if small else 128
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "lssl.LSSL"
  config.model.mixer.channels = 16 if small else 128
  config.model.mixer.order = 16 if small else 64
  config.model.mixer.outputs = 2
  config.model.mixer.transition = "legs"
  config.model.mixer.step_min = 1e-2 if small else 1e-3
  config.model.mixer.step_max = 0.1

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "mlp.MLP"
  config.model.channel.expansion = 2.0

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 4e-3 if small else 1e-3
  config.optim.warmup = {"smoke": 5, "cpu": 50, "paper": 1000}[preset]  # steps
  config.optim.steps = {"smoke": 50, "cpu": 500, "paper": 20_000}[preset]
  config.optim.final = 0.05  # of lr
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 250  # steps

  return config


def measure(program, state):
  """Returns by how much the two forms of the trained model differ on a validation batch."""
  tokens_BT = program.task.batch("validation", 0)["inputs"]
  parameters = {"params": state.params}
  conv_BTV, _ = program.model.apply(parameters, tokens_BT)
  one_document_BT = tokens_BT * 0
  recurrent_BTV, _ = program.model.apply(parameters, tokens_BT, None, one_document_BT)
  return {"forms/error": abs(conv_BTV - recurrent_BTV).max() / abs(recurrent_BTV).max()}


def arms():
  return {"hippo": {}, "random": {"model.mixer.transition": "random"}}


def claims():
  common = dict(paper=PAPER, year=2021, seeds=5)
  return [
      Claim(id="convolution_is_the_recurrence", **common, kind="exact", metric="forms/error", better="lower", arm="hippo",
            bound="1e-4 of the largest logit",
            statement="A trained LSSL gives the same logits as a convolution and as a recurrence",
            paper_value="exact by construction (section 3)"),
      Claim(id="hippo_start_lowers_the_loss", **common, metric="eval/loss", better="lower", arm="hippo", against="random",
            margin="0.1 nats", statement="With the HiPPO transition an LSSL echoes a token 16 steps back at a lower loss than with a random one",
            paper_value="HiPPO transitions are needed for long memory (ablation, unverified digits)"),
  ]
