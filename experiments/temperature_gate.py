r"""Does a gate that bends its logits before it divides them by a temperature need fewer samples to be estimated?

Samples of 1e3 to 1e5 pairs from two Gaussian linear experts in one dimension under softmax((f(w x) + b) / tau) are
fitted by maximum likelihood with three experts and the same f, from near the truth. mle/slope is the slope of log
error of all parameters against log samples; the identity is the plain gate with a temperature, whose density does not
change when w, b and tau grow together: along that line a fit stays about where it began, and as samples grow that is
what is left of the error. The theory is of the limit; here the slope also has the errors of a third expert that is one
too many, which fall in both. mle/slope_scaled is the slope with w / tau and b / tau in place of w, b and tau. The fits are part of the measurement: the engine's own model takes one step
and is not looked at.

    python -m research.verify temperature_gate

cpu: 2 cores, 2 core minutes for its claims: 2 INCONCLUSIVE
smoke: 2 cores, 5 CPU seconds for temperature
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke")
FAMILY = "experts"
PAPER = "Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?"


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "gaussian_experts.GaussianExperts"
  config.task.gate = "identity"
  config.task.samples = {"smoke": (1000, 3000), "cpu": (1000, 3000, 10_000, 30_000, 100_000)}[preset]
  config.task.repeats = 3
  config.task.batch_size = 64  # prompts, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "regressor.Regressor"
  config.model.depth = 1
  config.model.width = 2
  config.model.placement = "none"
  config.model.read_out = "last"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "linear_self_attention.LinearSelfAttention"
  config.model.mixer.form = "two"
  config.model.mixer.init_scale = 0.3

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"  # placed nowhere

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "sgd"
  config.optim.lr = 1e-3
  config.optim.steps = 1

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 1  # steps
  config.train.eval_batches = 1

  return config


def arms():
  return {"temperature": {}, "sigmoid": {"task.gate": "sigmoid"}, "tanh": {"task.gate": "tanh"}}


def claims():
  common = dict(paper=PAPER, year=2024, metric="mle/slope", better="lower", against="temperature", margin="0.1 slope", seeds=5,
                paper_value="polynomial rates, against slower than any polynomial for the plain gate (abstract)")
  return [
      Claim(id="sigmoid_gate_learns_faster", **common, arm="sigmoid",
            statement="Errors fall with samples by a steeper power if the logits go through a sigmoid first"),
      Claim(id="tanh_gate_learns_faster", **common, arm="tanh",
            statement="Errors fall with samples by a steeper power if the logits go through a tanh first"),
  ]


def measure(program, state):
  return program.task.measure(program, state)
