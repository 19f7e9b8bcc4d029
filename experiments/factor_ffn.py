r"""Can the dense units of a trained model be cut into experts, and does its own output teach a router which to take?

Four layers on the sources of the running Python's standard library are trained for 300 steps; then every gated
linear unit is cut into 4 experts, of which a fresh router takes 2 for each token, and training goes on for 100 steps.
With "prior" the router learns which experts come nearest to what the dense unit would have said, with "plain" it
stays as it was drawn and only the experts adapt. "dense" is trained for all 400 steps and never cut; its measured
numbers are the losses right after a cut, with all experts and with 2 by a router that was never trained.

All parameters are trained on the text; the paper trains on the teacher's logits too. The router loss has the
weight 1 in each layer, not taken from the paper.

    python -m research.verify factor_ffn

cpu: 2 cores, 7 core minutes for its claims: 2 HOLDS, 1 FAILS
smoke: 2 cores, not measured
paper: one H100 or v5e-8, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke", "paper")
FAMILY = "experts"
PAPER = "FactorLLM: Factorizing Knowledge via Mixture of Experts for Large Language Models"


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
  config.model.depth = 4 if small else 22
  config.model.width = 64 if small else 2048
  config.model.placement = "pre"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "attention.Attention"
  config.model.mixer.heads = 4 if small else 32
  config.model.mixer.head_dim = 16 if small else 64
  config.model.mixer.max_tokens = 64 if small else 2048

  config.model.channel = ml_collections.ConfigDict()
  config.model.channel.name = "factored_glu.FactoredGLU"
  config.model.channel.hidden = 160 if small else 5632
  config.model.channel.experts = 4
  config.model.channel.top_k = 2
  config.model.channel.prior_weight = 1.0

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"

  config.init = ml_collections.ConfigDict()
  config.init.grow = "factor"
  config.init.grow_steps = {"smoke": 20, "cpu": 300, "paper": 50_000}[preset]

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adamw"
  config.optim.lr = 3e-3 if small else 3e-4
  config.optim.schedule = "constant"
  config.optim.steps = {"smoke": 10, "cpu": 100, "paper": 5_000}[preset]
  config.optim.weight_decay = 0.1
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 20  # steps
  config.train.eval_every = 0
  config.train.eval_batches = 16
  config.train.save_every = 200  # steps

  return config


def arms():
  dense = {"init.grow": "", "optim.steps": 400, "model.channel.name": "glu.GLU"}
  return {"prior": {}, "plain": {"model.channel.prior_weight": 0.0}, "dense": dense}


def measure(program, state) -> dict[str, float]:
  """Returns the loss right after a dense model was cut, with 2 experts of 4 and with all, and the error of the latter."""
  if program.config.model.channel.name != "glu.GLU":
    return {}
  batches = program.config.train.eval_batches
  found = program.factored_losses(state, 4, (2, 4), batches)
  whole = program.measured(state, limit=batches)["eval/loss"]
  return found | {"factored/error_of_all": abs(found["factored/loss_top_4"] - whole)}


def claims():
  common = dict(paper=PAPER, year=2024, seeds=5)
  return [
      Claim(id="all_experts_are_the_dense_unit", **common, metric="factored/error_of_all", kind="exact", arm="dense",
            better="lower", bound="1e-5 nats", paper_value="by construction (section 3.1)",
            statement="With all experts of every unit the loss is that of the model that was cut"),
      Claim(id="teacher_helps_the_router", **common, metric="eval/loss", arm="prior", against="plain", better="lower",
            margin="0.02 nats", paper_value="the router is what its prior-approximate loss is for (section 3.2)",
            statement="A router taught by the dense unit's output has a lower loss than an untaught one, after 100 steps"),
      Claim(id="two_experts_of_four_keep_the_quality", **common, metric="eval/accuracy", kind="ratio", arm="prior",
            against="dense", better="higher", bound="0.85 times", paper_value="up to 85 % of the source (abstract)",
            statement="With half of each unit, the model keeps 85 % of the accuracy of one that was never cut"),
  ]
