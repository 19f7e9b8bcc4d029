r"""Can a trained model be rewritten as a cheaper one that computes the same?

Four layers of softmax attention on real text, byte by byte. After training, the Pre-LN model is rewritten as
Pre-RMSNorm and as Pre-CRMSNorm, and models with batch-statistic norms lose all their norms to the maps that read
them. "<form>/logits" is the largest difference of a logit over the largest logit on a validation batch, "<form>/loss"
the difference of the loss; the milliseconds of a forward pass before and after are kept, and nothing is claimed of them.

    python -m research.verify conversion
    python -m research.convert --from runs/conversion/ID --to pre_crms_norm

cpu: 2 cores, 4 core minutes for its claims: 5 HOLDS
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "norms"
EQUIVALENT = "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers"
UNIFIED = "Unified Normalization for Accelerating and Stabilizing Transformers"
SLAB = ("SLAB: Efficient Transformers with Simplified Linear Attention and "
        "Progressive Re-parameterized Batch Normalization")
PAPER = EQUIVALENT


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.tokens = 48 if small else 1024
  config.task.batch_size = 8 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 4 if small else 12
  config.model.width = 32 if small else 768
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 2 if small else 12
  config.model.mixer.head_dim = 16 if small else 64
  config.model.mixer.max_tokens = 48 if small else 1024

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "mlp.MLP"

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "layer_norm.LayerNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adam"
  config.optim.lr = 3e-3 if small else 3e-4
  config.optim.warmup = {"smoke": 5, "cpu": 50, "paper": 2000}[preset]  # steps
  config.optim.steps = {"smoke": 40, "cpu": 600, "paper": 20_000}[preset]
  config.optim.final = 0.1  # of lr
  config.optim.b2 = 0.98
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 600  # steps

  return config


def measure(program, state):
  """Returns how far the trained model is from each of its conversions."""
  if program.config.model.norm.name == "layer_norm.LayerNorm":
    return program.converted(state, "to_rms") | program.converted(state, "pre_crms_norm")
  return program.converted(state, "fused")


def arms():
  return {
      "pre_ln": {},
      "unified": {"model.norm.name": "unified_norm.UnifiedNorm", "model.norm.warmup": 200},  # steps
      "prepbn": {"model.norm.name": "prepbn.PRepBN", "model.norm.total": 300},  # steps of the change
  }


def claims():
  exact = dict(kind="exact", better="lower", seeds=5)
  logits, loss = "1e-5 of the largest logit", "1e-5 nats"
  return [
      Claim(id="pre_rms_is_pre_ln", **exact, paper=EQUIVALENT, year=2023, metric="to_rms/logits", arm="pre_ln", bound=logits,
            statement="A trained Pre-LN model rewritten as Pre-RMSNorm has the same logits",
            paper_value="arithmetically equivalent (section 3)"),
      Claim(id="pre_crms_is_pre_ln", **exact, paper=EQUIVALENT, year=2023, metric="pre_crms_norm/logits", arm="pre_ln",
            bound=logits, statement="A trained Pre-LN model rewritten as Pre-CRMSNorm has the same logits",
            paper_value="arithmetically equivalent (section 3)"),
      Claim(id="fused_un_is_evaluated_un", **exact, paper=UNIFIED, year=2022, metric="fused/loss", arm="unified", bound=loss,
            statement="Unified Normalization folds into the next maps without a change of the validation loss",
            paper_value="fused at inference; about 31 % faster"),
      Claim(id="fused_prepbn_is_evaluated_prepbn", **exact, paper=SLAB, year=2024, metric="fused/loss", arm="prepbn", bound=loss,
            statement="PRepBN folds into the next maps without a change of the validation loss",
            paper_value="absorbed by the next linear layer (section 3.2)"),
      Claim(id="un_is_as_good_as_ln", paper=UNIFIED, year=2022, metric="eval/loss", better="equal", arm="unified", against="pre_ln",
            margin="0.1 nats", statement="Unified Normalization ends within 0.1 nats of LayerNorm",
            paper_value="BLEU 35.4 against 35.3 of LN on IWSLT14 De-En"),
  ]
