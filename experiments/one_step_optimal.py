r"""Is one preconditioned gradient step the best that one layer of linear self-attention can do?

Linear regression of 5 inputs from 20 noisy pairs: isotropic inputs; inputs of which two are three times as long as
the other three, with weights of the inverse covariance; and a two-layer ReLU network in place of the linear
function. Trained layers are compared with the closed-form optimum, or for the network with the one step whose rate
fits the same prompts best.

    python -m research.verify one_step_optimal

cpu: 2 cores, 3 core minutes for its claims: 3 HOLDS, 2 FAILS
smoke: 2 cores, not measured
"""

import ml_collections

from research.claims import Claim

PRESETS = ("cpu", "smoke")
FAMILY = "in_context"
PAPER = ("One Step of Gradient Descent is Provably the Optimal In-Context Learner with One Layer of "
         "Linear Self-Attention")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  config.task = ml_collections.ConfigDict()
  config.task.name = "in_context.InContextRegression"
  config.task.dims = 5
  config.task.pairs = 20
  config.task.coordinates = "normal"
  config.task.covariance = "isotropic"
  config.task.condition = 3.0  # of "skewed"
  config.task.weights = "normal"
  config.task.response = "linear"
  config.task.hidden = 32
  config.task.noise = 0.5  # variance
  config.task.batch_size = 512  # prompts, over all hosts
  config.task.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "regressor.Regressor"
  config.model.depth = 1
  config.model.width = 6  # dims + 1
  config.model.placement = "none"
  config.model.read_out = "minus_last"

  config.model.mixer = ml_collections.ConfigDict()
  config.model.mixer.name = "linear_self_attention.LinearSelfAttention"
  config.model.mixer.form = "four"
  config.model.mixer.keys = "context"
  config.model.mixer.steps = 1
  config.model.mixer.init_scale = 0.02  # variance times inputs

  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = "rms_norm.RMSNorm"  # placed nowhere

  config.optim = ml_collections.ConfigDict()
  config.optim.name = "adam"
  config.optim.lr = 3e-3
  config.optim.b2 = 0.98
  config.optim.steps = {"smoke": 30, "cpu": 1500}[preset]
  config.optim.clip = 1.0  # global norm

  config.train = ml_collections.ConfigDict()
  config.train.log_every = 50  # steps
  config.train.eval_batches = 4
  config.train.save_every = 1500  # steps

  return config


def arms():
  return {
      "isotropic": {},
      "skewed": {"task.covariance": "skewed", "task.weights": "inverse"},
      "network": {"task.response": "relu_network"},
  }


def claims():
  common = dict(paper=PAPER, year=2024, seeds=5, kind="threshold", better="lower")
  excess = dict(**common, metric="in_context/excess", bound="0.01 of the risk")
  return [
      Claim(id="one_step_is_optimal", **excess, arm="isotropic",
            statement="A trained layer's risk is within 1 % of that of the best gradient step, with noise",
            paper_value="Theorem 1"),
      Claim(id="a_preconditioned_step_is_optimal", **excess, arm="skewed",
            statement="With skewed inputs a trained layer's risk is within 1 % of that of the best preconditioned step",
            paper_value="Theorem 2"),
      Claim(id="the_preconditioner_is_learned", **common, metric="in_context/preconditioner_error", arm="skewed",
            bound="0.05 relative error",
            statement="With skewed inputs a trained layer applies the inverse covariance, times the best rate",
            paper_value="Theorem 2"),
      Claim(id="a_step_stays_optimal_for_a_network", **excess, arm="network",
            statement="With a ReLU network as target a trained layer is within 1 % of the best plain gradient step",
            paper_value="Theorem 3"),
      Claim(id="a_network_needs_no_preconditioner", **common, metric="in_context/anisotropy", arm="network",
            bound="0.1 of Gamma", statement="With a ReLU network as target the preconditioner is a multiple of the identity",
            paper_value="Theorem 3"),
  ]


def measure(program, state):
  return program.task.measure(program, state)
