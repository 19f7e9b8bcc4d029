r"""Does a model of experts, in its attention and in its channel mixer, beat a dense one that uses as many parameters?

Two layers on the sources of the running Python's standard library. "jetmoe" has 4 attention experts and 8 gated linear
units in each layer, of which a token uses 2 and 2; "dense" has attention with as many heads as a token of "jetmoe" uses,
on as many keys and values, and a gated linear unit as wide as two experts and 4 features wider, which is what
the routers cost. count/active_parameters is what one token uses, embedding left out: a product with each takes two
operations. count/flops is no measure of it, since at this size every expert runs on every token.

    python -m research.verify jetmoe

cpu: 2 cores, 4 core minutes for its claims: 1 HOLDS, 1 INCONCLUSIVE
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "experts"
PAPER = "JetMoE: Reaching Llama2 Performance with 0.1M Dollars"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  small = preset != "paper"

  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "text.Bytes"
  config.task.dataset = "stdlib"
  config.task.tokens = 64 if small else 2048
  config.task.batch_size = 8 if small else 256  # sequences, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "lm.LM"
  config.model.depth = 2 if small else 24
  config.model.width = 64 if small else 2048
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "mixture_of_heads.MixtureOfHeads"
  config.model.mixer.experts = 4 if small else 8
  config.model.mixer.groups = 2 if small else 16
  config.model.mixer.head_dim = 16 if small else 128
  config.model.mixer.max_tokens = 64 if small else 2048

  config.model.mixer.router = ml_collections.ConfigDict()
  config.model.mixer.router.name = "gshard.GShard"
  config.model.mixer.router.top_k = 2
  config.model.mixer.router.slots = 2
  config.model.mixer.router.balance_weight = 0.01
  config.model.mixer.router.z_weight = 0.001

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "moe.MoE"
  config.model.channel.experts = 8
  config.model.channel.hidden = 80 if small else 5632
  config.model.channel.dispatch = "dense" if small else "dropless"

  config.model.channel.router = ml_collections.ConfigDict()
  config.model.channel.router.name = "gshard.GShard"
  config.model.channel.router.top_k = 2
  config.model.channel.router.slots = 2
  config.model.channel.router.balance_weight = 0.01
  config.model.channel.router.z_weight = 0.001

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 5e-4
  config.optim.final = 0.05  # of lr
  config.optim.warmup = {"smoke": 3, "cpu": 50, "paper": 2500}[preset]  # steps
  config.optim.steps = {"smoke": 30, "cpu": 600, "paper": 50_000}[preset]
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 300  # steps

  return config


def measure(program, state) -> dict[str, float]:
  """Returns how many parameters a token uses, the embedding left out."""
  return {"count/active_parameters": _used(state.params, program.config.model)}


def _used(tree, model, layer=None) -> float:
  """Counts parameters; those of experts times the share of experts that the config of their layer lets a token use."""
  total = 0.0
  for name, part in tree.items():
    if hasattr(part, "items"):
      total += 0.0 if name == "embedding" else _used(part, model, model.get(name, layer)) * _share(name, layer)
    else:
      total += part.size
  return total


def _share(name, layer) -> float:
  return layer.router.top_k / layer.experts if name.startswith("experts_") else 1.0


def arms():
  dense = {"model.mixer.name": "attention.Attention", "model.mixer.heads": 4, "model.channel.name": "glu.GLU",
           "model.channel.hidden": 164}
  return {"jetmoe": {}, "dense": dense}


def claims():
  common = dict(paper=PAPER, year=2024, better="lower", arm="jetmoe", against="dense")
  return [
      Claim(id="experts_beat_dense", **common, metric="eval/loss", margin="0.02 nats", seeds=5,
            statement="Experts in attention and channel mixer lower the loss at equal active parameters",
            paper_value="8B parameters, 2B of them active, outperform Llama2-7B (abstract)"),
      Claim(id="a_token_uses_as_much", **common, metric="count/active_parameters", kind="ratio", bound="1.01 times",
            seeds=1,
            statement="A token uses as many parameters of the model of experts as of the dense one",
            paper_value="2B active parameters of 8B (abstract)"),
  ]
